//! The world in which all mistakes are made: a network that runs, a node that never gets in, and a
//! member whose meshd is stopped.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use podmesh_lab::node::program;
use podmesh_lab::ping::PingMatrix;
use podmesh_lab::{Lab, Mesh, Nat, Node, Plan, mesh, process, wait};
use podmesh_proto::armor;
use podmesh_proto::local_api::{NodeState, StatusView};
use podmesh_proto::network::Network;

/// How long a program may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A home with a member and a node that wants in, and a cloud with three members.
pub(super) fn plan() -> Plan {
    let mut plan = Lab::plan("bad-input");
    plan.planet("planet-1");
    plan.site("home").nat(Nat::PortRestricted);
    plan.site("cloud");
    plan.node("member-1").at("home");
    plan.node("novice-1").at("home");
    plan.node("member-2").at("cloud");
    plan.node("idle-1").at("cloud");
    plan.node("cramped-1").at("cloud");
    plan
}

/// The world after its members have joined.
pub(super) struct Stand<'lab> {
    pub(super) lab: &'lab Lab,
    mesh: Mesh<'lab>,
    pings: PingMatrix,
    /// A token that no mistake may spend.
    pub(super) good_token: PathBuf,
    idle: StatusView,
    fresh: Cell<u32>,
}

/// What a program answered.
pub(super) struct Said {
    pub(super) code: Option<i32>,
    pub(super) words: String,
}

/// What no mistake may take away, by where it is.
pub(super) type Belongings = BTreeMap<String, String>;

impl<'lab> Stand<'lab> {
    pub(super) fn build(lab: &'lab Lab) -> Result<Self> {
        let mesh = Mesh::found(lab, "planet-1")?;
        let members = ["member-1", "member-2"].map(|name| lab.node(name));
        let [one, two] = members;
        let (one, two, idle) = (one?, two?, lab.node("idle-1")?);
        for node in [one, two, idle] {
            mesh.join(node)?;
        }
        let limit = Duration::from_secs(20);
        mesh.wait_for(&[one, two, idle], "direct paths", limit, mesh::is_direct)?;
        let left = status(idle)?;
        idle.stop()?;
        lab.node("novice-1")?.start()?;
        let pings = PingMatrix::start()?;
        for node in [one, two] {
            pings.add(node.name(), &node.namespace(), &addresses(node)?)?;
        }
        pings.wait_for_all(5, Duration::from_secs(10))?;
        Ok(Self {
            lab,
            good_token: mesh.operator().token("good", &[])?,
            mesh,
            pings,
            idle: left,
            fresh: Cell::default(),
        })
    }

    pub(super) fn node(&self, name: &str) -> Result<&Node> {
        self.lab.node(name)
    }

    pub(super) fn mesh(&self) -> &Mesh<'lab> {
        &self.mesh
    }

    pub(super) fn pings(&self) -> &PingMatrix {
        &self.pings
    }

    /// The network as its operator has it.
    pub(super) fn network(&self) -> Result<Network> {
        let text = fs::read_to_string(self.mesh.operator().document())?;
        Ok(Network::from_statement(&armor::decode_statement(&text)?)?)
    }

    /// A path in the lab's folder that nothing has yet.
    pub(super) fn fresh(&self, name: &str) -> PathBuf {
        self.fresh.set(self.fresh.get() + 1);
        let number = self.fresh.get();
        self.lab.folder().join(format!("{number}-{name}"))
    }

    /// A new token of the network.
    pub(super) fn token(&self, options: &[&str]) -> Result<PathBuf> {
        let name = format!("bad-input-{}", self.fresh.replace(self.fresh.get() + 1));
        self.mesh.operator().token(&name, options)
    }

    /// A file with this text that only its owner can read.
    pub(super) fn file(&self, name: &str, text: impl AsRef<[u8]>) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.fresh(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// A token of a network of its own whose planet is said to be `planet`.
    pub(super) fn token_of_other(&self, planet: &str, options: &[&str]) -> Result<PathBuf> {
        let folder = self.fresh("other");
        let folder = text(&folder)?;
        let create = [
            "network",
            "create",
            "other",
            "--no-passphrase",
            "--planet",
            planet,
        ];
        let place = ["--dir", folder];
        meshctl(&[&create, options, &place].concat())?;
        let out = self.fresh("other.token");
        meshctl(&[&["token", "create", "--out", text(&out)?], &place[..]].concat())?;
        Ok(out)
    }

    /// Lets the novice join with what is in `token`; a join that meshd goes on with is given up.
    pub(super) fn join(&self, token: &Path) -> Result<Said> {
        let novice = self.node("novice-1")?;
        let words = ["join", text(token)?, "--timeout", "4s"];
        let said = novice.meshctl_output(&words, PATIENCE)?;
        if status(novice)?.state != NodeState::NotJoined {
            novice.meshctl(&["leave", "--yes"])?;
        }
        Ok(said.into())
    }

    /// Everything that must be the same after each mistake.
    pub(super) fn belongings(&self) -> Result<Belongings> {
        let mut all = Belongings::new();
        for name in ["member-1", "member-2", "novice-1", "idle-1"] {
            let node = self.node(name)?;
            // Before a join there are no keys, and a join that was refused may have made some.
            if name != "novice-1" {
                let identity = fs::read(node.state_dir().join("identity"))?;
                all.insert(format!("identity of {name}"), format!("{identity:?}"));
            }
            if name != "idle-1" {
                let status = status(node).with_context(|| format!("{name} is silent"))?;
                let is = (
                    status.state,
                    status
                        .node
                        .map(|node| (node.id, node.addresses, node.pod_cidrs)),
                );
                all.insert(format!("membership of {name}"), format!("{is:?}"));
            }
        }
        for file in ["network.podmesh", "root.key"] {
            let content = fs::read(self.mesh.operator().folder().join(file))?;
            all.insert(file.to_owned(), format!("{content:?}"));
        }
        Ok(all)
    }

    /// After all mistakes the stopped member comes back as it was, and the novice gets in.
    pub(super) fn goes_on(&self) -> Result<()> {
        let (idle, novice) = (self.node("idle-1")?, self.node("novice-1")?);
        idle.start()?;
        idle.wait_online(Duration::from_secs(15))?;
        let now = status(idle)?;
        ensure!(
            now.node == self.idle.node,
            "{:?} became {:?}",
            self.idle.node,
            now.node
        );
        novice.meshctl(&["join", text(&self.good_token)?])?;
        let all = ["member-1", "member-2", "idle-1", "novice-1"].map(|name| self.node(name));
        let all = all.into_iter().collect::<Result<Vec<_>>>()?;
        self.mesh
            .wait_for(&all, "all paths", Duration::from_secs(20), mesh::is_up)?;
        Ok(())
    }
}

impl Said {
    /// What is judged when a mistake could not even be made.
    pub(super) fn nothing(error: &Error) -> Self {
        let words = format!("the mistake could not be made: {error:#}");
        Self { code: None, words }
    }

    /// Whether a line is the one that says what is wrong.
    pub(super) fn is_sentence(line: &str) -> bool {
        ["meshctl: ", "meshd: ", "error: "]
            .iter()
            .any(|mark| line.starts_with(mark))
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            words: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }
    }
}

/// What a node says about itself.
pub(super) fn status(node: &Node) -> Result<StatusView> {
    Ok(serde_json::from_value(node.meshctl_json(&["status"])?)?)
}

/// The overlay addresses of a member.
pub(super) fn addresses(node: &Node) -> Result<Vec<IpAddr>> {
    let own = status(node)?.node;
    Ok(own
        .with_context(|| format!("{} is no member", node.name()))?
        .addresses)
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the lab's folder is not UTF-8")
}

/// Runs `meshctl` on the operator's desk, where it must succeed.
fn meshctl(words: &[&str]) -> Result<()> {
    let mut command = std::process::Command::new(program("meshctl")?);
    process::succeed(command.args(words), b"").map(drop)
}

/// Waits until a node's status is as wanted, and returns it.
pub(super) fn wait_for_status(
    node: &Node,
    what: &str,
    wanted: impl Fn(&StatusView) -> bool,
) -> Result<StatusView> {
    wait::until(what, Duration::from_secs(12), || {
        let status = status(node)?;
        Ok(if wanted(&status) {
            wait::Now(status)
        } else {
            wait::NotYet(format!("{:?}, {:?}", status.state, status.health))
        })
    })
}
