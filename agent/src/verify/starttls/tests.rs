use super::*;
use proptest::prelude::*;

const ALL: [Starttls; 7] = [
    Starttls::Smtp,
    Starttls::Imap,
    Starttls::Pop3,
    Starttls::Ldap,
    Starttls::Postgres,
    Starttls::Mysql,
    Starttls::Ftp,
];

/// A server that says one thing after the other, each when it was asked.
struct Script<'a> {
    protocol: Starttls,
    says: &'a [&'a [u8]],
}

impl Script<'_> {
    /// What was sent to it, once TLS may begin. `pieces`: so many bytes come at once.
    fn play(&self, pieces: usize) -> Result<Vec<Vec<u8>>, StarttlsError> {
        let mut dialogue = Dialogue::new(self.protocol);
        let mut sent = Vec::new();
        let mut coming = self.says.iter().copied();
        let mut here: &[u8] = &[];
        loop {
            match dialogue.step()? {
                Step::Ready => return Ok(sent),
                Step::Send(bytes) => sent.push(bytes),
                Step::Receive => {
                    if here.is_empty() {
                        here = coming.next().ok_or(StarttlsError::Closed)?;
                    }
                    let (now, later) = here.split_at(pieces.min(here.len()));
                    dialogue.received(now)?;
                    here = later;
                }
            }
        }
    }
}

fn mysql_greeting(flags: [u8; 2]) -> Vec<u8> {
    let mut packet = b"\x0a8.0.36\0".to_vec();
    packet.extend([1, 0, 0, 0]);
    packet.extend(b"saltsalt\0");
    packet.extend(flags);
    packet.extend(b"\x2d\x02\0\xff\xdf\x15\0\0\0\0\0\0\0\0\0\0saltsaltsalt\0caching_sha2_password\0");
    let mut whole = (packet.len() as u32).to_le_bytes()[..3].to_vec();
    whole.push(0);
    whole.extend(packet);
    whole
}

#[test]
fn each_protocol_comes_to_tls_however_its_bytes_arrive() {
    let mysql = mysql_greeting([0xff, 0xff]);
    // As OpenLDAP and as others write it.
    let short: &[u8] = b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00";
    let long: &[u8] =
        b"\x30\x84\x00\x00\x00\x10\x02\x01\x01\x78\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00";
    let scripts: [(Starttls, &[&[u8]], usize); 10] = [
        (
            Starttls::Smtp,
            &[
                b"220-mx.test ESMTP\r\n220 hello\r\n",
                b"250-mx.test\r\n250-SIZE\r\n250 starttls\r\n",
                b"220 go\r\n",
            ],
            2,
        ),
        (Starttls::Smtp, &[b"220 x\n", b"250-x\n250-STARTTLS\n250 HELP\n", b"220 go\n"], 2),
        (Starttls::Imap, &[b"* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n", b"* 1 X\r\na OK go\r\n"], 1),
        (Starttls::Pop3, &[b"+OK <1@x>\r\n", b"+OK go\r\n"], 1),
        (Starttls::Ldap, &[short], 1),
        (Starttls::Ldap, &[long], 1),
        (Starttls::Postgres, &[b"S"], 1),
        (Starttls::Mysql, &[&mysql], 1),
        (Starttls::Ftp, &[b"220-Welcome\r\n 220 not the end\r\nnor this\r\n220 FTP\r\n", b"234 go\r\n"], 1),
        (Starttls::Ftp, &[b"120 soon\r\n220 FTP\r\n", b"234-yes\r\n234 go\r\n"], 1),
    ];
    for (protocol, says, sent) in scripts {
        for pieces in [1, 2, 7, 10_000] {
            let script = Script { protocol, says };
            let said = script.play(pieces).unwrap_or_else(|error| panic!("{protocol:?} {pieces}: {error}"));
            assert_eq!(said.len(), sent, "{protocol:?}");
        }
    }
}

#[test]
fn what_is_asked_for_is_what_the_protocols_say() {
    let asked = |protocol, says: &[u8]| Script { protocol, says: &[says] }.play(100).unwrap().pop().unwrap();
    let ldap = asked(Starttls::Ldap, b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00");
    assert_eq!(ldap.len(), 2 + usize::from(ldap[1]));
    let mysql = asked(Starttls::Mysql, &mysql_greeting([0, 8]));
    assert_eq!(mysql.len(), 36);
    assert_eq!(mysql[..4], [32, 0, 0, 1]);
    assert_eq!(asked(Starttls::Postgres, b"S"), [0, 0, 0, 8, 4, 210, 22, 47]);
}

#[test]
fn a_refusal_is_told_with_its_words() {
    let no_tls = mysql_greeting([0, 0]);
    let cases: [(Starttls, &[&[u8]], &str); 14] = [
        (Starttls::Smtp, &[b"554 no service\r\n"], "no service"),
        (Starttls::Smtp, &[b"220 x\r\n", b"250-x\r\n250 SIZE\r\n"], "does not offer TLS"),
        (Starttls::Smtp, &[b"220 x\r\n", b"250-x\r\n250 STARTTLS\r\n", b"454 4.7.0 not now\r\n"], "not now"),
        (Starttls::Smtp, &[b"* OK imap\r\n"], "does not speak smtp"),
        (Starttls::Imap, &[b"* PREAUTH welcome\r\n"], "PREAUTH"),
        (Starttls::Imap, &[b"* OK x\r\n", b"a BAD no such thing\r\n"], "no such thing"),
        (Starttls::Imap, &[b"* OK x\r\n", b"HTTP/1.1 400\r\n"], "does not speak imap"),
        (Starttls::Pop3, &[b"+OK\r\n", b"-ERR no\r\n"], "refuses TLS"),
        (Starttls::Ftp, &[b"220 x\r\n", b"502 unknown\r\n"], "unknown"),
        (Starttls::Ldap, &[b"\x30\x13\x02\x01\x01\x78\x0e\x0a\x01\x02\x04\x00\x04\x07unavail"], "unavail"),
        (Starttls::Ldap, &[b"HTTP/1.1 400 Bad Request\r\n"], "does not speak ldap"),
        (Starttls::Postgres, &[b"N"], "does not offer TLS"),
        (Starttls::Mysql, &[&no_tls], "does not offer TLS"),
        (Starttls::Mysql, &[b"\x14\0\0\0\xff\x6a\x04Host is blocked.."], "Host is blocked"),
    ];
    for (protocol, says, word) in cases {
        let error = Script { protocol, says }.play(100).unwrap_err().to_string();
        assert!(error.contains(word), "{protocol:?}: {error}");
    }
}

#[test]
fn nothing_may_follow_the_consent() {
    let cases: [(Starttls, &[&[u8]]); 6] = [
        (Starttls::Smtp, &[b"220 x\r\n", b"250 STARTTLS\r\n", b"220 go\r\n250 injected\r\n"]),
        (Starttls::Imap, &[b"* OK\r\n", b"a OK go\r\na OK injected\r\n"]),
        (Starttls::Pop3, &[b"+OK\r\n", b"+OK go\r\n+OK"]),
        (Starttls::Ftp, &[b"220 x\r\n", b"234 go\r\n230 in\r\n"]),
        (Starttls::Postgres, &[b"SE"]),
        (Starttls::Ldap, &[b"\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00\x30"]),
    ];
    for (protocol, says) in cases {
        let error = Script { protocol, says }.play(100).unwrap_err();
        assert!(matches!(error, StarttlsError::Injected), "{protocol:?}: {error}");
    }
}

#[test]
fn what_has_no_end_is_given_up() {
    for protocol in ALL {
        for piece in [b"220-more\r\n".as_slice(), b"* 1 more\r\n", b"x", b"\x30\x82\x3f\xff", &[0; 64]] {
            let says = vec![piece; MOST_BYTES + 1];
            let error = Script { protocol, says: &says }.play(64).unwrap_err();
            let given_up = matches!(
                error,
                StarttlsError::TooLong | StarttlsError::Unexpected { .. } | StarttlsError::Refused { .. }
            );
            assert!(given_up, "{protocol:?}: {error}");
        }
    }
}

#[test]
fn a_greeting_tells_the_protocol() {
    for (greeting, protocol) in [
        (b"220 mx.test ESMTP Postfix\r\n".as_slice(), Some(Starttls::Smtp)),
        (b"220 (vsFTPd 3.0.3)\r\n", Some(Starttls::Ftp)),
        (b"* OK ready\r\n", Some(Starttls::Imap)),
        (b"+OK ready\r\n", Some(Starttls::Pop3)),
        (&mysql_greeting([0, 0]), Some(Starttls::Mysql)),
        (b"HTTP/1.1 400 Bad Request\r\n", None),
        (b"", None),
    ] {
        assert_eq!(greeted_by(greeting), protocol);
    }
}

proptest! {
    #[test]
    fn garbage_never_panics_and_always_ends(
        at in 0..ALL.len(),
        says in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                "[0-9]{1,3}[ -].{0,20}\r\n".prop_map(String::into_bytes),
                "[*a+] (OK|BAD|NO|BYE)?.{0,9}\r?\n".prop_map(String::into_bytes),
                Just(mysql_greeting([0xff, 0xff])),
            ],
            0..6,
        ),
        pieces in 1_usize..40,
    ) {
        let says: Vec<&[u8]> = says.iter().map(Vec::as_slice).collect();
        match (Script { protocol: ALL[at], says: &says }).play(pieces) {
            Ok(sent) => prop_assert!(sent.len() <= 2),
            Err(error) => prop_assert!(error.to_string().chars().all(|c| !c.is_control())),
        }
        let _ = greeted_by(&says.concat());
    }
}
