//! How rotations end, word for word.

use super::*;
use crate::cli::output::text::Look;
use reseal_proto::v1::{self, TargetState};

fn rotation(state: RotationState, targets: &[(TargetState, u32)], compromised: bool) -> v1::Rotation {
    v1::Rotation {
        id: "r7".into(),
        state: state.into(),
        reason: "key on a laptop".into(),
        operator: "alice".into(),
        compromised: compromised.then(|| v1::AuthorityInfo {
            name: "builtin/a".into(),
            subject: "CN=A".into(),
            ..Default::default()
        }),
        targets: targets.iter().map(|(state, number)| (*state as u32, *number)).collect(),
        created_at: 1_790_000_000,
        ended_at: 1_790_000_100,
        green_at: 1_790_000_092,
        hosts: 3,
        containers: 4,
        endpoints: 5,
        ..Default::default()
    }
}

fn code(state: RotationState, targets: &[(TargetState, u32)], compromised: bool) -> Exit {
    exit(&rotation(state, targets, compromised).into())
}

#[test]
fn the_exit_code_is_honest() {
    use RotationState as R;
    use TargetState as T;
    assert_eq!(code(R::Completed, &[(T::Verified, 3)], false), Exit::Done);
    assert_eq!(code(R::Completed, &[(T::Verified, 3)], true), Exit::NotContained);
    assert_eq!(code(R::Completed, &[(T::Verified, 3), (T::RolledBack, 1)], true), Exit::Error);
    assert_eq!(code(R::Trailing, &[(T::Verified, 3), (T::Straggler, 1)], true), Exit::Stragglers);
    assert_eq!(code(R::Trailing, &[(T::Verified, 3), (T::Unserved, 1)], false), Exit::Stragglers);
    assert_eq!(code(R::Expired, &[(T::Verified, 3), (T::Straggler, 1)], false), Exit::Stragglers);
    assert_eq!(code(R::Completed, &[(T::Verified, 3), (T::Pending, 1)], false), Exit::Stragglers);
    assert_eq!(code(R::Trailing, &[(T::Verified, 3), (T::Excluded, 1)], true), Exit::Stragglers);
    assert_eq!(code(R::Expired, &[(T::Excluded, 4)], false), Exit::Stragglers);
    assert_eq!(code(R::Halted, &[(T::Failed, 1)], true), Exit::Halted);
    assert_eq!(code(R::Aborted, &[(T::Verified, 3)], true), Exit::Error);
    let mut contained = rotation(R::Completed, &[(T::Verified, 3)], true);
    contained.contained = true;
    assert_eq!(exit(&contained.into()), Exit::Done);
}

#[test]
fn replaced_is_not_contained() {
    let mut rotation = rotation(RotationState::Completed, &[(TargetState::Verified, 12)], true);
    rotation.verified_by_handshake = 11;
    rotation.relying_parties = vec![v1::RelyingParty {
        host: "web-1".into(),
        container: "api".into(),
        bundle: "managed-root".into(),
        verdict: "untested".into(),
    }];
    let view = RotationView::from(rotation);
    let text = text(&view).render(Look { colour: false, width: None });
    assert_eq!(
        text,
        "Rotation r7 completed: replaced everywhere, NOT contained\n\
         \n\
         Reason         key on a laptop (alice)\n\
         Compromised    builtin/a  CN=A\n\
         Hosts          3\n\
         Certificates   12 of 12 verified\n\
         Proved by      fresh handshakes (11), reload or file alone (1)\n\
         Containers     4\n\
         Endpoints      5\n\
         Time to green  1 min 32 s\n\
         \n\
         Not contained: whoever holds the key of builtin/a can still be believed: 1 relying party was not tested.\n\
         HOST   CONTAINER  BUNDLE        COMPROMISED ISSUER\n\
         web-1  api        managed-root  untested\n\
         \n\
         Next: reseal rotation evidence r7   fetches the signed evidence\n"
    );
    let json = serde_json::to_value(summary(&view)).unwrap();
    assert_eq!(json["exit_code"], 6);
    assert_eq!(json["compromised_issuer_still_accepted"], "untested");
    assert_eq!(json["time_to_green_seconds"], 92);
    assert_eq!(json["replaced"], true);
    assert_eq!(json["created_at"], "2026-09-21T14:13:20Z");
}

#[test]
fn failures_say_why_and_what_next() {
    let mut rotation =
        rotation(RotationState::Halted, &[(TargetState::RolledBack, 2), (TargetState::Verified, 1)], false);
    rotation.ended_at = 0;
    rotation.failures = vec![v1::TargetRow {
        host: "web-1".into(),
        installation: "/srv/site.crt".into(),
        label: "web/site".into(),
        state: TargetState::RolledBack.into(),
        failure: Some(v1::Failure {
            stage: v1::Stage::Reload.into(),
            code: "check-failed".into(),
            reason: "nginx -t refuses\x1b[1m the config".into(),
        }),
        next: "mend it".into(),
    }];
    let summary = serde_json::to_value(summary(&rotation.clone().into())).unwrap();
    let line = "web-1 web/site rolled-back at reload (check-failed): nginx -t refuses\u{1b}[1m the config. Next: mend it";
    assert_eq!(summary["open"][0], line);
    let text = text(&rotation.into()).render(Look { colour: false, width: None });
    assert!(text.contains("Failed (2)"), "{text}");
    assert!(
        text.contains(
            "web-1  web/site      rolled-back  reload  nginx -t refuses\u{fffd}[1m the config  mend it"
        ),
        "{text}"
    );
    assert!(text.contains("and 1 more"), "{text}");
    assert!(text.contains("reseal rotation retry r7"), "{text}");
}

#[test]
fn what_is_excluded_is_named_and_never_clean() {
    let targets = [(TargetState::Verified, 3), (TargetState::Excluded, 1)];
    let mut rotation = rotation(RotationState::Trailing, &targets, true);
    rotation.excluded_hosts = ["web-3", "db-1"]
        .map(|host| v1::ExcludedHost {
            host: host.into(),
            reason: "disk".into(),
            operator: "alice".into(),
            at: 1,
        })
        .into();
    rotation.excluded = vec![v1::TargetRow {
        host: "web-3".into(),
        label: "web/site".into(),
        state: TargetState::Excluded.into(),
        failure: Some(v1::Failure { reason: "excluded by alice: disk".into(), ..Default::default() }),
        ..Default::default()
    }];
    let view = RotationView::from(rotation);
    assert!(!view.replaced);
    let line = one_line(&view).render(Look { colour: false, width: None });
    assert_eq!(line, "rotation r7 is trailing: 3 of 4 verified, 1 excluded\n");
    let text = text(&view).render(Look { colour: false, width: None });
    assert!(text.contains("Excluded, not replaced (1)"), "{text}");
    assert!(text.contains("web-3  web/site      excluded by alice: disk"), "{text}");
    assert!(text.contains("Excluded hosts without a row above: db-1"), "{text}");
}

#[test]
fn what_is_not_managed_is_named_and_never_clean() {
    let targets = [(TargetState::Verified, 3)];
    let mut rotation = rotation(RotationState::Completed, &targets, true);
    rotation.contained = true;
    rotation.unmanaged = 2;
    if let Some(issuer) = &mut rotation.compromised {
        (issuer.installations, issuer.unmanaged) = (3, 2);
    }
    rotation.unmanaged_certificates = vec![v1::UnmanagedCertificate {
        host: "db-1".into(),
        label: "legacy/site".into(),
        installation: "/srv/legacy/site.crt".into(),
        containers: vec!["legacy".into()],
        endpoints: vec!["10.0.0.9:443".into()],
        next: "`reseal adopt db-1 /srv/legacy/site.crt`, then rotate again".into(),
        ..Default::default()
    }];
    let view = RotationView::from(rotation);
    assert!(view.replaced, "every managed one is");
    assert_eq!(exit(&view), Exit::NotContained, "whatever is said of relying parties");
    let line = one_line(&view).render(Look { colour: false, width: None });
    assert_eq!(line, "rotation r7 is completed: 3 of 3 verified, 2 not managed\n");
    let text = text(&view).render(Look { colour: false, width: None });
    assert!(
        text.starts_with("Rotation r7 completed: every managed certificate is replaced, NOT contained\n")
    );
    assert!(text.contains("Not managed      2 certificates of builtin/a: not replaced\n"), "{text}");
    assert!(text.contains("Not managed by Reseal (2): no rotation replaces these\n"), "{text}");
    assert!(
        text.contains("db-1  legacy/site  /srv/legacy/site.crt  legacy      10.0.0.9:443  `reseal adopt"),
        "{text}"
    );
    assert!(text.contains("and 1 more: `reseal certs --discovered`"), "{text}");
    assert!(
        text.contains("2 certificates were of it not managed")
            || text.contains("not managed and not replaced")
    );
    assert!(text.contains("Still on record  1 managed certificate of builtin/a: `reseal plan`"), "{text}");
    let json = serde_json::to_value(summary(&view)).unwrap();
    assert_eq!((&json["unmanaged"], &json["exit_code"]), (&2.into(), &6.into()));
    assert_eq!(json["unmanaged_certificates"][0]["host"], "db-1");
}
