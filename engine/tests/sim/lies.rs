//! Lies that nobody must believe: members, a stolen planet key and a thief on the wire.

use podmesh_engine::mutation;
use podmesh_engine::output::PlanetEvent;
use podmesh_proto::certificate::{
    AdmissionReceipt, Application, Claim, ClaimReceipt, Leases, Membership, NodeCertificate,
};
use podmesh_proto::id::NodeId;
use podmesh_proto::key::{SecretKey, SigningKey};
use podmesh_proto::network::RootStatement;
use podmesh_proto::planet_api::{DirectoryCursor, DirectoryRecord, DirectoryUpdate, PlanetMessage};
use podmesh_proto::signed::Signed;

use podmesh_planet::rules::Input;

use crate::authority::name;
use crate::life::Life;
use crate::world::World;

/// A machine that never joined, with every key of its own.
struct Impostor {
    identity: SigningKey,
    wireguard: SecretKey,
    probe: SecretKey,
}

impl Life {
    /// A node sends with the source of another.
    pub fn lie_about_source(&mut self, node: usize) {
        let nodes = self.world.count();
        let (victim, target) = ((node + 1) % nodes, (node + 2) % nodes);
        mutation::set_rogue(true);
        self.world.pretend(node, victim, target);
        mutation::set_rogue(false);
    }

    /// A planet tells of a member that it never admitted: the receipts are sealed by nobody's key.
    pub fn forge_member(&mut self, node: usize) {
        let rogue = SigningKey::from_seed(self.world.net.random.bytes());
        let impostor = self.impostor();
        let membership = impostor.membership(&self.world, &rogue, None);
        self.tell_of(node, membership);
    }

    /// A stolen planet key and a token make a member that claims what another holds.
    pub fn steal_claim(&mut self, node: usize) {
        let nodes = self.world.count();
        let victim = (node + 1) % nodes;
        // Whose membership ends loses what it held to whoever came next.
        if self.world.nodes[victim].cidr.is_none() || self.world.authority.life.is_some() {
            return;
        }
        let key = self.world.authority.planets[0].seed();
        let key = SigningKey::from_seed(*key);
        let impostor = self.impostor();
        self.world.watch.impostor(impostor.id(), victim);
        let membership = impostor.membership(&self.world, &key, Some(victim));
        self.tell_of(node, membership);
    }

    /// The root puts a node out; soon nobody talks with it any more.
    pub fn revoke(&mut self, node: usize) {
        let statement = RootStatement::RevokeNode {
            network: self.world.authority.network.id,
            node: self.world.nodes[node].id,
            issued: self.world.now().unix,
        };
        let statement = Signed::seal(&statement, &self.world.authority.root).unwrap();
        let input = Input::Statement {
            request: 1,
            statement: Box::new(statement),
        };
        self.world.tell_planet(0, input);
    }

    fn impostor(&mut self) -> Impostor {
        let random = &mut self.world.net.random;
        Impostor {
            identity: SigningKey::from_seed(random.bytes()),
            wireguard: SecretKey::from_bytes(random.bytes()),
            probe: SecretKey::from_bytes(random.bytes()),
        }
    }

    /// Puts words into the mouth of the first planet that a node is connected to.
    fn tell_of(&mut self, node: usize, membership: Membership) {
        let Some(planet) = self.world.planet_of(node) else {
            return;
        };
        let update = DirectoryUpdate {
            cursor: DirectoryCursor {
                epoch: self.world.net.random.next(),
                version: 1,
            },
            from_start: false,
            records: vec![DirectoryRecord::Member(Box::new(membership))],
        };
        let message = Box::new(PlanetMessage::Directory(update));
        self.world
            .tell_node(node, planet, PlanetEvent::Message(message));
    }
}

impl Impostor {
    fn id(&self) -> NodeId {
        self.identity.node_id()
    }

    /// A membership whose receipts `planet` has signed; with a victim it claims what that one holds.
    fn membership(&self, world: &World, planet: &SigningKey, victim: Option<usize>) -> Membership {
        let authority = &world.authority;
        let (network, time, node) = (authority.network.id, world.now().unix, self.id());
        let (grant, token_key) = authority.grant(2);
        let certificate = NodeCertificate {
            network,
            node,
            name: name(&format!("x{}", node.short())),
            wireguard: self.wireguard.public(),
            probe: self.probe.public(),
            site: None,
            groups: Vec::new(),
            relay: false,
            issued: time,
            expires: None,
        };
        let signed = Signed::seal(&grant, &authority.root).unwrap();
        let application =
            Application::new(signed, &certificate, &token_key, &self.identity).unwrap();
        let receipt = AdmissionReceipt {
            network,
            planet: authority.planets[0].planet_id(),
            token: grant.token,
            use_number: 1 + u32::from(node.0[0] % 200),
            node,
            name: certificate.name,
            certificate: application.certificate.hash(),
            leases: Leases::default(),
            sequence: 1,
            time,
        };
        let pods = victim.and_then(|victim| world.nodes[victim].cidr);
        let claim = Claim {
            network,
            node,
            serial: 1,
            overlay4: None,
            pod_cidrs: pods.into_iter().collect(),
        };
        let claim = Signed::seal(&claim, &self.identity).unwrap();
        let claim_receipt = ClaimReceipt {
            network,
            planet: authority.planets[0].planet_id(),
            node,
            claim: claim.hash(),
            sequence: 2,
            settles: Vec::new(),
            time,
        };
        Membership {
            application,
            receipt: Signed::seal(&receipt, planet).unwrap(),
            claim,
            claim_receipt: Signed::seal(&claim_receipt, planet).unwrap(),
            renewed: None,
        }
    }
}
