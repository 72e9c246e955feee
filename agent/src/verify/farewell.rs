//! How a conversation ends that was only begun to see a certificate.
//!
//! Most servers do not mind that a connection ends behind the handshake. MySQL
//! and MariaDB count it, and after `max_connect_errors` of them (100) they refuse
//! every connection from that address: the host's, and with it whoever comes
//! through a published port. A login that is denied is not counted so. That is
//! how such a conversation ends: as a user who does not exist, without a
//! password, and with COM_QUIT should one be let in.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::starttls::{MysqlAnswer, mysql_answer, mysql_login, mysql_packet};
use crate::discover::Starttls;

/// Packets that a server may send before it has decided.
const MOST_PACKETS: usize = 5;
/// Of one packet; bytes.
const MOST_BYTES: usize = 4096;
/// The command that ends a session (MySQL internals manual, "COM_QUIT").
const COM_QUIT: u8 = 1;

/// Ends it as the protocol likes. What was seen is seen: an error here is no matter.
pub(super) async fn say(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), protocol: Starttls) {
    match protocol {
        Starttls::Mysql => {
            let _ = mysql(stream).await;
        }
        Starttls::None
        | Starttls::Smtp
        | Starttls::Imap
        | Starttls::Pop3
        | Starttls::Ldap
        | Starttls::Postgres
        | Starttls::Ftp => {}
    }
}

async fn mysql(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    stream.write_all(&mysql_login()).await?;
    for _ in 0..MOST_PACKETS {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize;
        let mut packet = vec![0; length.min(MOST_BYTES)];
        stream.read_exact(&mut packet).await?;
        match mysql_answer(&packet) {
            MysqlAnswer::Denied => return Ok(()),
            MysqlAnswer::LetIn => return stream.write_all(&mysql_packet(0, &[COM_QUIT])).await,
            // It wants another proof of who we are: there is none.
            MysqlAnswer::More => stream.write_all(&mysql_packet(head[3].wrapping_add(1), &[])).await?,
        }
    }
    Ok(())
}
