use podmesh_kernel::xfrm::{Policy, policies_in_the_way};

use crate::sandbox::{ip, isolated};

const TUNNEL: &str = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel";
/// Selectors, what the policy does, and whether it takes packets of the mesh.
const POLICIES: [(&str, &str, bool); 9] = [
    (
        "dir out src 10.0.0.0/8 dst 10.0.0.0/8",
        "action block",
        true,
    ),
    ("dir fwd src 0.0.0.0/0 dst 0.0.0.0/0", TUNNEL, true),
    ("dir in src 10.42.3.0/24 dst 10.77.0.0/16", TUNNEL, true),
    ("dir out src fd00:1::/48 dst fd00::/8", "action block", true),
    ("dir out src 10.42.0.0/16 dst 192.168.0.0/16", TUNNEL, false),
    (
        "dir out src 10.0.0.0/8 dst 10.0.0.0/8",
        "action allow",
        false,
    ),
    (
        "dir out src 10.0.0.0/8 dst 10.0.0.0/8 proto tcp dport 22",
        "action block",
        false,
    ),
    (
        "dir out src 10.0.0.0/8 dst 10.0.0.0/8 dev lo",
        "action block",
        false,
    ),
    (
        "dir out src 10.0.0.0/8 dst 10.0.0.0/8 mark 7",
        "action block",
        false,
    ),
];

#[test]
fn policies_that_take_the_mesh_are_named_unless_another_one_spares_it() {
    isolated(|| {
        let protected = ["10.42.0.0/16", "10.77.0.0/16", "fd00:1::/48"];
        let protected = protected.map(|range| range.parse().unwrap());
        let found = || {
            let found = policies_in_the_way(&protected).unwrap();
            found.iter().map(Policy::next).collect::<Vec<_>>()
        };
        for (selector, more, is_named) in POLICIES {
            ip(&format!("xfrm policy add {selector} priority 100 {more}"));
            let said = found();
            assert_eq!(said.len(), usize::from(is_named), "{selector}: {said:?}");
            if is_named {
                let command = format!("`ip xfrm policy delete {selector}`");
                assert!(said[0].contains(&command), "{selector}: {said:?}");
            }
            ip(&format!("xfrm policy delete {selector}"));
            assert_eq!(found(), Vec::<String>::new());
        }
        ip("xfrm policy add dir out src 10.0.0.0/8 dst 10.0.0.0/8 priority 100 action block");
        ip("xfrm policy add dir out src 10.0.0.0/8 dst 10.42.0.0/16 priority 50 action allow");
        assert_eq!(found().len(), 1, "it spares the pods alone");
        ip("xfrm policy add dir out src 10.64.0.0/10 dst 10.77.0.0/16 priority 60 action allow");
        ip("xfrm policy add dir out src 10.42.0.0/16 dst 10.64.0.0/10 priority 60 action allow");
        assert_eq!(found(), Vec::<String>::new());
    });
}
