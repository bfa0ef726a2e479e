//! `--ready MODE`.

use std::ops::RangeInclusive;

use super::env::Env;
use super::error::{Parsed, Reason};
use super::{count, duration, share_rules};
use crate::config::ReadyMode;

/// Below are the standard streams; above, the kernel opens no descriptor unless `fs.nr_open` is raised.
const DESCRIPTORS: RangeInclusive<u32> = 3..=1_048_575;

/// When a worker counts as ready.
pub(super) fn parse(text: &str, env: &dyn Env) -> Parsed<ReadyMode> {
    if let Some(addresses) = text.strip_prefix("listen:") {
        let address = |text: &str| {
            share_rules::address(text, env)
                .map_err(|reason| Reason::from(format!("names {text:?}, which {reason}")))
        };
        return addresses
            .split(',')
            .map(|text| address(text.trim()))
            .collect::<Result<_, _>>()
            .map(ReadyMode::ListenOn);
    }
    if let Some(number) = text.strip_prefix("notify:fd=") {
        return descriptor(number).map(ReadyMode::NotifyFd);
    }
    if let Some(time) = text.strip_prefix("alive:") {
        let time =
            duration::parse(time).map_err(|reason| Reason::from(format!("has a time that {reason}")))?;
        return Ok(ReadyMode::Alive(time));
    }
    match text {
        "auto" => Ok(ReadyMode::Auto),
        "listen" => Ok(ReadyMode::Listen),
        "notify" => Ok(ReadyMode::Notify),
        "none" => Ok(ReadyMode::None),
        _ => {
            Err("is not a mode; give auto, listen, listen:ADDR, notify, notify:fd=N, alive:DUR or none"
                .into())
        }
    }
}

fn descriptor(number: &str) -> Parsed<i32> {
    count::within(number, &DESCRIPTORS).and_then(|fd| i32::try_from(fd).ok()).ok_or_else(|| {
        format!(
            "names no free descriptor; give notify:fd=N with N from {} to {}",
            DESCRIPTORS.start(),
            DESCRIPTORS.end()
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::Host;
    use super::*;
    use crate::config::AddressPattern;

    fn parse(text: &str) -> Parsed<ReadyMode> {
        super::parse(text, &Host::default())
    }

    #[test]
    fn addresses_are_named_as_for_sharing() {
        let expected = vec![
            AddressPattern::Ports(3000..=3000),
            AddressPattern::Inet("127.0.0.1:80".parse().expect("an address")),
            AddressPattern::Path("/run/a.sock".into()),
            AddressPattern::Abstract(b"bus".to_vec()),
        ];
        assert_eq!(
            parse("listen:3000,127.0.0.1:80, unix:/run/a.sock,@bus"),
            Ok(ReadyMode::ListenOn(expected))
        );
    }

    #[test]
    fn a_wrong_address_is_told_as_such() {
        for (garbage, reason) in [
            ("listen:", r#"names "", which is not an address; give PORT, IP:PORT"#),
            ("listen:3000,", r#"names "", which is not an address; give PORT, IP:PORT"#),
            ("listen:host:80", r#"names "host:80", which is not an address; give PORT, IP:PORT"#),
            ("listen:0", r#"names "0", which has no valid port; give 1 to 65535"#),
            ("listen:3000,80-90", r#"names "80-90", which is a range of ports; give one"#),
        ] {
            let told = parse(garbage).expect_err(garbage);
            assert!(told.starts_with(reason), "{garbage}: {told}");
        }
    }

    #[test]
    fn every_mode_has_its_word() {
        assert_eq!(parse("auto"), Ok(ReadyMode::Auto));
        assert_eq!(parse("listen"), Ok(ReadyMode::Listen));
        assert_eq!(parse("notify"), Ok(ReadyMode::Notify));
        assert_eq!(parse("notify:fd=3"), Ok(ReadyMode::NotifyFd(3)));
        assert_eq!(parse("alive:10s"), Ok(ReadyMode::Alive(Duration::from_secs(10))));
        assert_eq!(parse("none"), Ok(ReadyMode::None));
    }

    #[test]
    fn garbage_is_told_the_modes() {
        for garbage in ["", "Auto", "notify:", "notify:3", "notify=3", "alive", "listen ", "off"] {
            let reason = parse(garbage).expect_err(garbage);
            assert!(
                reason.ends_with("give auto, listen, listen:ADDR, notify, notify:fd=N, alive:DUR or none"),
                "{garbage}"
            );
        }
    }

    #[test]
    fn a_descriptor_is_3_or_higher() {
        for garbage in ["notify:fd=", "notify:fd=2", "notify:fd=-1", "notify:fd=x", "notify:fd=2147483648"] {
            assert!(parse(garbage).expect_err(garbage).contains("notify:fd=N with N from 3"), "{garbage}");
        }
    }

    #[test]
    fn a_wrong_time_is_told_as_such() {
        for garbage in ["alive:", "alive:soon", "alive:-1s", "alive:200years"] {
            assert!(parse(garbage).expect_err(garbage).starts_with("has a time that is "), "{garbage}");
        }
    }
}
