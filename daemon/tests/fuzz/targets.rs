//! What an operator writes into meshd's configuration file.

use crate::config::Config;
use crate::edits::edited;

const EXAMPLE: &str = include_str!("../../../packaging/config/meshd.toml");
/// Bytes. No link with IPv6 may carry less, and none carries more.
const MTUS: std::ops::RangeInclusive<u32> = 1_280..=9_000;

/// The input itself, the example with its lines uncommented and edited, and single values: what is taken
/// is possible, and what is refused is said in printable words.
pub(crate) fn configuration(input: &[u8]) {
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.contains(" = ") && !key.starts_with(' ') => format!("{key}\n"),
        _ => String::new(),
    });
    let whole: String = lines.collect();
    let edited = edited(whole.as_bytes(), input);
    for text in [input, &edited] {
        if let Ok(text) = str::from_utf8(text) {
            judge(text);
        }
    }
    let Some((which, value)) = input.split_first() else {
        return;
    };
    let keys: Vec<&str> = whole
        .lines()
        .filter_map(|line| line.split(" = ").next())
        .collect();
    let key = keys.get(usize::from(*which) % keys.len().max(1));
    if let (Some(key), Ok(value)) = (key, str::from_utf8(value)) {
        let quoted = format!("{value:?}");
        for text in [
            format!("{key} = {value}"),
            format!("{key} = {quoted}"),
            format!("{key} = [{quoted}, {quoted}]"),
        ] {
            judge(&text);
        }
    }
}

fn judge(text: &str) {
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            assert!(!said.chars().any(char::is_control), "{said:?}");
            return;
        }
    };
    assert!(
        config.mtu.is_none_or(|mtu| MTUS.contains(&mtu)),
        "{config:?}"
    );
    assert!(config.port.is_none_or(|port| port >= 1_024), "{config:?}");
    let shards = config.shards.unwrap_or(1);
    assert!((1..=64).contains(&shards), "{config:?}");
    let devices = config.local_devices.iter().chain([&config.device]);
    for name in devices.chain(&config.exclude_interfaces) {
        assert!((1..=16).contains(&name.len()), "{config:?}");
        let strange = |char: char| char == '/' || char.is_whitespace() || char.is_control();
        assert!(!name.contains(strange), "{config:?}");
    }
    let endpoints = config.endpoints.iter();
    assert!(endpoints.len() <= 8, "{config:?}");
    for endpoint in endpoints {
        let ip = endpoint.ip();
        let strange = ip.is_unspecified() || ip.is_multicast() || ip.is_loopback();
        assert!(!strange && endpoint.port() >= 1_024, "{config:?}");
    }
    let files = config.subnet_env.iter().chain(&config.join_token_file);
    for file in files {
        assert!(file.is_absolute(), "{config:?}");
    }
}
