//! A daemon that knows a network: its newest edition, who is in it, and what its root has said.

use std::path::Path;
use std::sync::{Arc, Mutex};

use podmesh_proto::id::{NodeId, TokenId};
use podmesh_proto::key::{PublicKey, SigningKey};
use podmesh_proto::local_api::{
    RegisteredExternal, RegisteredNode, RegistryView, Request, Response, TokenUse,
};
use podmesh_proto::network::{Network, RootStatement};
use podmesh_proto::signed::Signed;
use podmesh_proto::time::UnixSeconds;
use serde_json::Value;

use crate::desk::{Desk, statement};
use crate::fake_daemon::{FakeDaemon, done, failed};

/// What the daemon knows, to be looked at while it serves.
#[derive(Clone)]
pub(crate) struct Book(Arc<Mutex<Pages>>);

struct Pages {
    view: RegistryView,
    said: Vec<Signed<RootStatement>>,
}

impl Book {
    /// It has the edition that the desk has at the moment.
    pub(crate) fn of(desk: &Desk) -> Self {
        let view = RegistryView {
            statement: statement(&desk.lab("network.podmesh")).to_base64().unwrap(),
            nodes: Vec::new(),
            externals: Vec::new(),
            tokens: Vec::new(),
            counts: true,
            unknown_until: None,
        };
        let said = Vec::new();
        Self(Arc::new(Mutex::new(Pages { view, said })))
    }

    fn change(self, change: impl FnOnce(&mut RegistryView)) -> Self {
        change(&mut self.0.lock().unwrap().view);
        self
    }

    /// With a node; its id and its key are made of `number`.
    pub(crate) fn node(self, name: &str, number: u8, prefix: &str) -> Self {
        self.change(|view| {
            view.nodes.push(RegisteredNode {
                id: NodeId([number; 32]),
                name: name.parse().unwrap(),
                wireguard: PublicKey([number; 32]),
                prefixes: vec![prefix.parse().unwrap()],
            });
        })
    }

    /// With an external peer, named by somebody whose clock is a little ahead.
    pub(crate) fn external(self, name: &str, number: u8, prefix: &str) -> Self {
        let issued = self.network().issued.plus(60);
        self.change(|view| {
            view.externals.push(RegisteredExternal {
                name: name.parse().unwrap(),
                wireguard: PublicKey([number; 32]),
                prefixes: vec![prefix.parse().unwrap()],
                endpoint: None,
                issued,
            });
        })
    }

    pub(crate) fn used(self, token: TokenId, used: u32) -> Self {
        self.change(|view| view.tokens.push(TokenUse { token, used }))
    }

    /// It doesn't count uses of tokens; it has only seen some.
    /// The planet took over at `until`.
    pub(crate) fn unknown_until(self, until: UnixSeconds) -> Self {
        self.change(|view| view.unknown_until = Some(until))
    }

    pub(crate) fn without_counts(self) -> Self {
        self.change(|view| view.counts = false)
    }

    /// Another operator makes an edition.
    pub(crate) fn edition(&self, desk: &Desk, change: impl FnOnce(&mut Network)) {
        let mut pages = self.0.lock().unwrap();
        let mut network = read(&pages.view.statement);
        change(&mut network);
        let document = Signed::seal(&RootStatement::Network(network), &root(desk)).unwrap();
        pages.view.statement = document.to_base64().unwrap();
    }

    /// The network as the daemon has it.
    pub(crate) fn network(&self) -> Network {
        read(&self.0.lock().unwrap().view.statement)
    }

    /// What it was given.
    pub(crate) fn said(&self) -> Vec<RootStatement> {
        let pages = self.0.lock().unwrap();
        let network = read(&pages.view.statement);
        let all = pages.said.iter();
        all.map(|said| network.verify(said).unwrap()).collect()
    }

    pub(crate) fn serve(&self, socket: &Path) -> FakeDaemon {
        let book = self.clone();
        FakeDaemon::start(socket, move |request| book.answer(request))
    }

    fn answer(&self, request: Request) -> Response {
        let mut pages = self.0.lock().unwrap();
        match request {
            Request::Registry => Response::Registry(Box::new(pages.view.clone())),
            Request::Statement { statement } => {
                let signed = Signed::<RootStatement>::from_base64(&statement).unwrap();
                let known = read(&pages.view.statement);
                if let RootStatement::Network(given) = known.verify(&signed).unwrap() {
                    if given.version <= known.version && given != known {
                        return failed("failed", "another edition is known");
                    }
                    pages.view.statement = statement;
                }
                pages.said.push(signed);
                done("taken")
            }
            _ => failed("failed", "not asked for"),
        }
    }
}

fn read(statement: &str) -> Network {
    Network::from_statement(&Signed::from_base64(statement).unwrap()).unwrap()
}

/// The plain root key of the desk.
fn root(desk: &Desk) -> SigningKey {
    let text = std::fs::read_to_string(desk.lab("root.key")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let seed: NodeId = file["seed"]["seed"].as_str().unwrap().parse().unwrap();
    SigningKey::from_seed(seed.0)
}
