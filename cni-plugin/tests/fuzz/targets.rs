//! What a runtime hands to the plugin.

use crate::request::{Request, Verb, version_of};

/// The variables, between zero bytes, and standard input: names stay names, folders absolute.
pub(crate) fn plugin(input: &[u8]) {
    let mut parts = input.splitn(5, |byte| *byte == 0);
    let mut next = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (verb, id, ifname, netns) = (next(), next(), next(), next());
    let verbs = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];
    let verb = verbs[verb.len() % verbs.len()];
    let body = parts.next().unwrap_or_default();
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(verb.to_owned()),
        "CNI_CONTAINERID" => Some(id.clone()),
        "CNI_IFNAME" => Some(ifname.clone()),
        "CNI_NETNS" => Some(netns.clone()),
        _ => None,
    };
    let _ = version_of(body);
    let Ok(request) = Request::parse(variable, body) else {
        return;
    };
    if let Ok(attachment) = request.attachment() {
        let name = attachment.host_name();
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        assert!(plain && name.len() <= 15, "{name}");
        for word in [&id, &ifname] {
            assert!(!word.contains('/') && !word.contains('\0'), "{word}");
        }
    }
    let anywhere = matches!(request.verb, Verb::Version);
    assert!(anywhere || request.config.data_dir.is_absolute());
}
