//! A machine on which meshd has just been installed.

use podmesh_lab::{Lab, Nat};

#[test]
fn a_node_without_a_network_runs_stops_and_says_what_it_is() {
    let mut plan = Lab::plan("first-start");
    plan.site("home").nat(Nat::PortRestricted);
    plan.node("home-1").at("home");
    let lab = plan.up().unwrap();
    let node = lab.node("home-1").unwrap();
    for end in ["stop", "kill", "power"] {
        node.start().unwrap();
        let status = node.meshctl_json(&["status"]).unwrap();
        assert_eq!(status["state"], "not-joined", "{status}");
        assert!(node.peers().unwrap().is_empty());
        match end {
            "stop" => node.stop().unwrap(),
            "kill" => node.kill(),
            _ => node.power_cut().unwrap(),
        }
    }
    node.power_on().unwrap();
    node.start().unwrap();
    node.stop().unwrap();
}
