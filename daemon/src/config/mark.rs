//! The mark's bits that other programs are known to use.

use podmesh_proto::mark::Mark;

/// Who uses which bits, unless somebody has told them otherwise.
const OTHERS: [(&str, u32); 8] = [
    ("kube-proxy", 0xc000),
    ("the CNI plugin portmap", 0x2000),
    ("Cilium", 0x0f00),
    ("Calico", 0xffff_0000),
    ("Tailscale", 0x00ff_0000),
    ("Weave Net", 0x0006_0000),
    ("KubeSpan", 0x60),
    ("the AWS VPC CNI plugin", 0x80),
];

/// What to say of a mark that others would take for theirs, and what helps. It is no error: they may run elsewhere.
pub(crate) fn remark(mark: Mark) -> Option<(String, String)> {
    let uses = |(_, bits): &&(&str, u32)| mark.value() & bits != 0;
    let names: Vec<String> = OTHERS
        .iter()
        .filter(uses)
        .map(|(name, bits)| format!("{name} ({bits:#x})"))
        .collect();
    (!names.is_empty()).then(|| {
        let message = format!(
            "mark = {mark} sets bits that are used by {}; where that runs on this machine, it may \
             translate or divert the tunnel's datagrams",
            names.join(", ")
        );
        let next = format!(
            "take another `mark` in the configuration of meshd, for instance the default {}, and restart it",
            Mark::DEFAULT
        );
        (message, next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_nobodys_and_every_other_is_named() {
        assert_eq!(remark(Mark::DEFAULT), None);
        for (text, names) in [
            (
                "0x6d65",
                &["kube-proxy", "portmap", "Cilium", "KubeSpan"][..],
            ),
            ("0x4000/0xffff", &["kube-proxy"]),
            ("0x10000", &["Calico", "Tailscale"]),
        ] {
            let (said, _) = remark(text.parse().unwrap()).unwrap();
            for name in names {
                assert!(said.contains(name), "{text}: {said}");
            }
        }
    }
}
