//! What other programs read about this node: the file for the CNI plugin, and flannel's
//! `subnet.env`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use podmesh_proto::node_file::{NODE_FILE_NAME, NodeFile};
use serde_json::Value;

use crate::kept::Kept;
use crate::state::replace_file;

/// Files of memberships that have ended, newest first, for as long as the host must be kept closed after them.
const FORMER_NAME: &str = "former-node.json";

/// First line of a `subnet.env` of ours; any other file of that name is somebody else's.
const OURS: &str = "# written by meshd\n";

/// Writes the files, and only when they change.
#[derive(Debug)]
pub(crate) struct NodeFiles {
    runtime: PathBuf,
    state: PathBuf,
    /// In both folders, too: each of the two may be lost.
    former: [PathBuf; 2],
    subnet_env: Option<PathBuf>,
    written: Option<Vec<u8>>,
    /// What no disk can lose.
    remembered: Vec<NodeFile>,
    /// What was written with success.
    kept: Vec<Kept>,
    /// The last call could not write the copy that pods wait for.
    keeps_waiting: bool,
}

impl NodeFiles {
    /// Nothing is written yet.
    pub(crate) fn new(runtime: &Path, state: &Path, subnet_env: Option<PathBuf>) -> Self {
        Self {
            runtime: runtime.join(NODE_FILE_NAME),
            state: state.join(NODE_FILE_NAME),
            former: [state, runtime].map(|folder| folder.join(FORMER_NAME)),
            subnet_env,
            written: None,
            remembered: Vec::new(),
            kept: Vec::new(),
            keeps_waiting: false,
        }
    }

    /// Writes what has changed: first the `former` memberships, since what describes the last of them is
    /// overwritten, then the runtime folder's copy of the present one, since pods wait for that.
    ///
    /// # Errors
    /// Everything that went wrong, one sentence each; what could be written is.
    pub(crate) fn write(
        &mut self,
        file: &NodeFile,
        former: &[NodeFile],
    ) -> Result<(), Vec<String>> {
        let mut trouble = self.remember(former);
        match self.write_present(file) {
            Ok(()) if trouble.is_empty() => Ok(()),
            Ok(()) => Err(trouble),
            Err(more) => {
                trouble.extend(more);
                Err(trouble)
            }
        }
    }

    fn write_present(&mut self, file: &NodeFile) -> Result<(), Vec<String>> {
        if let Err(error) = file.validate() {
            return Err(vec![error.to_string()]);
        }
        let mut bytes = match serde_json::to_vec_pretty(file) {
            Ok(bytes) => bytes,
            Err(error) => return Err(vec![error.to_string()]),
        };
        bytes.push(b'\n');
        if self.written.as_ref() == Some(&bytes) && self.kept.iter().all(Kept::stands) {
            return Ok(());
        }
        // What fails here is tried again by the next call.
        self.written = None;
        self.kept.clear();
        let mut trouble = Vec::new();
        let mut note =
            |path: &Path, outcome: io::Result<()>| match outcome.and_then(|()| Kept::at(path)) {
                Ok(kept) => self.kept.push(kept),
                Err(cause) => trouble.push(format!("can't write {}: {cause}", path.display())),
            };
        for path in [&self.runtime, &self.state] {
            note(path, write_new(path, &bytes));
        }
        if let Some(path) = &self.subnet_env
            && let Some(text) = subnet_env(file)
        {
            note(path, replace_foreign(path, &text));
        }
        self.keeps_waiting = !self.kept.iter().any(|kept| kept.path() == self.runtime);
        if trouble.is_empty() {
            self.written = Some(bytes);
            Ok(())
        } else {
            Err(trouble)
        }
    }

    /// Whether pods wait for a file that could not be written.
    pub(crate) fn keep_waiting(&self) -> bool {
        self.keeps_waiting
    }

    /// What was written, as it was.
    pub(crate) fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Takes away what describes a membership that has ended, so that no pod is added any more: what is not the
    /// `present` one, or has ranges that the present one hasn't. All memberships that are known are remembered
    /// before, whether pods of theirs stand or not. An ADD that has read such a file looks for it again when it has
    /// made its pod, so that pods which are looked for afterwards are all that will ever stand: only then may a
    /// membership be forgotten.
    ///
    /// # Errors
    /// Everything that went wrong, one sentence each. As long as a file stays, pods may be added.
    pub(crate) fn set_aside(&mut self, present: Option<&NodeFile>) -> Result<(), Vec<String>> {
        let folders = [&self.runtime, &self.state];
        let described: Vec<NodeFile> = folders.into_iter().flat_map(|path| read(path)).collect();
        let is_over = |file: &NodeFile| present.is_none_or(|present| !covers(present, file));
        if present.is_some() && !described.iter().any(is_over) {
            return Ok(());
        }
        let known = self.former();
        let mut trouble = self.remember(&known);
        self.written = None;
        self.kept.clear();
        self.keeps_waiting = false;
        let all = [&self.runtime, &self.state];
        let ours = self.subnet_env.iter().filter(|path| is_ours(path));
        let ours = ours.filter(|_| present.is_none());
        trouble.extend(all.into_iter().chain(ours).filter_map(|path| remove(path)));
        if trouble.is_empty() {
            Ok(())
        } else {
            Err(trouble)
        }
    }

    /// The memberships that any file describes, newest first, each set of ranges once: those that have ended,
    /// and the last that was a present one. Who has joined another network or lost one of the folders since has
    /// it nowhere else.
    pub(crate) fn former(&self) -> Vec<NodeFile> {
        let present = [&self.runtime, &self.state].into_iter();
        let mut all: Vec<NodeFile> = present.flat_map(|path| read(path)).collect();
        all.extend(self.remembered.iter().cloned());
        all.extend(self.former.iter().flat_map(|path| read(path)));
        let mut known = BTreeSet::new();
        all.retain_mut(|file| {
            file.closed.clear();
            file.former_pod_cidrs.clear();
            known.insert(file.protected.iter().copied().collect::<BTreeSet<_>>())
        });
        all
    }

    /// Makes these the memberships that need their guard. Gives what went wrong, one sentence each.
    pub(crate) fn remember(&mut self, former: &[NodeFile]) -> Vec<String> {
        self.remembered = former.to_vec();
        if former.is_empty() {
            // One that stays closes what could be open, no more.
            self.former.iter().for_each(|path| drop(remove(path)));
            return Vec::new();
        }
        let mut bytes = match serde_json::to_vec_pretty(former) {
            Ok(bytes) => bytes,
            Err(error) => return vec![error.to_string()],
        };
        bytes.push(b'\n');
        let outcomes = self.former.iter().filter_map(|path| {
            let error = write_new(path, &bytes).err()?;
            Some(format!("can't write {}: {error}", path.display()))
        });
        outcomes.collect()
    }
}

/// Writes what is not there yet: a disk that takes nothing may have it already.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::read(path) {
        Ok(there) if there == bytes => Ok(()),
        _ => replace_file(path, bytes),
    }
}

/// The memberships that a file describes: one, or a list.
fn read(path: &Path) -> Vec<NodeFile> {
    let parsed = match fs::read(path) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error.to_string()),
    };
    parsed.unwrap_or_else(|reason| {
        tracing::warn!(path = %path.display(), reason, "a membership's file can't be read");
        Vec::new()
    })
}

fn parse(bytes: &[u8]) -> Result<Vec<NodeFile>, String> {
    let words = |error: serde_json::Error| error.to_string();
    let files = match serde_json::from_slice(bytes).map_err(words)? {
        list @ Value::Array(_) => serde_json::from_value(list).map_err(words)?,
        one => vec![serde_json::from_value::<NodeFile>(one).map_err(words)?],
    };
    for file in &files {
        file.validate().map_err(|error| error.to_string())?;
    }
    Ok(files)
}

/// Gives what went wrong, as a sentence.
fn remove(path: &Path) -> Option<String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), reason = %error, "can't remove a file");
            Some(format!("can't remove {}: {error}", path.display()))
        }
        _ => None,
    }
}

/// Whether all ranges of a membership are also the other one's.
fn covers(file: &NodeFile, other: &NodeFile) -> bool {
    let mut ranges = other.protected.iter();
    ranges.all(|range| file.protected.iter().any(|own| own.contains(range)))
}

/// Flannel's form: shell variables, the subnet with the address of its first host as gateway.
/// `None` without an IPv4 pod CIDR, which flannel's plugin can't do without.
fn subnet_env(file: &NodeFile) -> Option<String> {
    let own = |v4: bool| {
        file.pod_cidrs
            .iter()
            .find(|cidr| cidr.addr().is_ipv4() == v4)
    };
    let subnet = own(true)?;
    let mut text = format!("{OURS}FLANNEL_NETWORK={}\n", around(file, subnet)?);
    text += &format!(
        "FLANNEL_SUBNET={}/{}\n",
        first_host(subnet)?,
        subnet.prefix_len()
    );
    if let Some(subnet) = own(false) {
        text += &format!("FLANNEL_IPV6_NETWORK={}\n", around(file, subnet)?);
        text += &format!(
            "FLANNEL_IPV6_SUBNET={}/{}\n",
            first_host(subnet)?,
            subnet.prefix_len()
        );
    }
    // meshd's own table masquerades, and only what leaves the network.
    text += &format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ=false\n", file.mtu);
    Some(text)
}

fn around<'a>(file: &'a NodeFile, subnet: &IpNet) -> Option<&'a IpNet> {
    file.protected.iter().find(|range| range.contains(subnet))
}

fn first_host(subnet: &IpNet) -> Option<IpAddr> {
    match subnet {
        IpNet::V4(net) => net.hosts().next().map(IpAddr::V4),
        IpNet::V6(net) => Some(IpAddr::V6((u128::from(net.network()) + 1).into())),
    }
}

fn replace_foreign(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() && !is_ours(path) {
        return Err(io::Error::other(
            "the file is another program's; remove it, or set another subnet-env",
        ));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    replace_file(path, text.as_bytes())?;
    // Scripts of any user source it, and nothing in it is secret.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn is_ours(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(OURS.as_bytes()))
}

#[cfg(test)]
mod tests {
    use podmesh_proto::mark::Mark;
    use podmesh_proto::node_file::NODE_FILE_SCHEMA;

    use super::*;
    use crate::scratch::Scratch;

    fn file() -> NodeFile {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        NodeFile {
            schema: NODE_FILE_SCHEMA.to_owned(),
            network: "07070707".to_owned(),
            node: "alpha".to_owned(),
            device: "mesh0".to_owned(),
            mtu: 1280,
            pod_cidrs: nets(&["10.42.3.0/24", "fd07:707:707:8003::/64"]),
            overlay_addresses: vec!["10.77.0.3".parse().unwrap()],
            protected: nets(&["10.77.0.0/16", "10.42.0.0/16", "fd07:707:707:8000::/49"]),
            service_ranges: Vec::new(),
            local_devices: Vec::new(),
            mark: Mark::DEFAULT,
            closed: Vec::new(),
            former_pod_cidrs: Vec::new(),
        }
    }

    #[test]
    fn both_copies_and_subnet_env_are_written() {
        let scratch = Scratch::new();
        let (runtime, state) = (scratch.path("run"), scratch.path("state"));
        fs::create_dir(&runtime).unwrap();
        fs::create_dir(&state).unwrap();
        let env = scratch.path("flannel/subnet.env");
        let mut files = NodeFiles::new(&runtime, &state, Some(env.clone()));
        files.write(&file(), &[]).unwrap();
        let bytes = fs::read(runtime.join("node.json")).unwrap();
        assert_eq!(bytes, fs::read(state.join("node.json")).unwrap());
        let read = NodeFile::parse(&bytes, |bytes| serde_json::from_slice(bytes)).unwrap();
        assert_eq!(read, file());
        assert_eq!(
            fs::read_to_string(&env).unwrap(),
            "# written by meshd\n\
             FLANNEL_NETWORK=10.42.0.0/16\n\
             FLANNEL_SUBNET=10.42.3.1/24\n\
             FLANNEL_IPV6_NETWORK=fd07:707:707:8000::/49\n\
             FLANNEL_IPV6_SUBNET=fd07:707:707:8003::1/64\n\
             FLANNEL_MTU=1280\n\
             FLANNEL_IPMASQ=false\n"
        );
        retire(&mut files);
        assert!(!env.exists() && !runtime.join("node.json").exists());
        assert!(!state.join("node.json").exists(), "no pod may be added");
        retire(&mut files);
        assert_eq!(files.former(), [file()]);
        files.remember(&[]);
        assert_eq!(files.former(), []);
        files.write(&file(), &[]).unwrap();
        fs::remove_file(state.join("node.json")).unwrap();
        retire(&mut files);
        assert_eq!(files.former(), [file()], "the state folder was lost");
    }

    /// While pods of every membership stand.
    fn retire(files: &mut NodeFiles) {
        let former = files.former();
        files.set_aside(None).unwrap();
        assert_eq!(files.former(), former);
    }

    #[test]
    fn what_describes_the_present_membership_is_not_set_aside() {
        let scratch = Scratch::new();
        let (runtime, state) = (scratch.path("run"), scratch.path("state"));
        fs::create_dir(&runtime).unwrap();
        fs::create_dir(&state).unwrap();
        let mut files = NodeFiles::new(&runtime, &state, None);
        files.write(&file(), &[]).unwrap();
        let moved = NodeFile {
            pod_cidrs: vec!["10.42.9.0/24".parse().unwrap()],
            ..file()
        };
        files.set_aside(Some(&moved)).unwrap();
        assert!(runtime.join("node.json").exists(), "pods need not wait");
        files.set_aside(Some(&other(1))).unwrap();
        assert!(!runtime.join("node.json").exists());
        assert_eq!(files.former(), [file()]);
        // A file that can't be taken away is said.
        fs::create_dir(runtime.join("node.json")).unwrap();
        let trouble = files.set_aside(None).unwrap_err();
        assert!(trouble[0].contains("can't remove"), "{trouble:?}");
    }

    fn other(number: u8) -> NodeFile {
        NodeFile {
            network: format!("{number}"),
            pod_cidrs: Vec::new(),
            overlay_addresses: Vec::new(),
            protected: vec![format!("10.{number}.0.0/16").parse().unwrap()],
            ..file()
        }
    }

    #[test]
    fn memberships_that_have_ended_are_known_after_any_crash_and_the_loss_of_a_folder() {
        for lost in ["run", "state", "neither"] {
            let scratch = Scratch::new();
            let folders = ["run", "state"].map(|name| scratch.path(name));
            let [runtime, state] = &folders;
            folders
                .iter()
                .for_each(|folder| fs::create_dir(folder).unwrap());
            let begin = || NodeFiles::new(runtime, state, None);
            begin().write(&other(1), &[]).unwrap();
            // The second was joined, and nothing was written of that.
            assert_eq!(begin().former(), [other(1)]);
            begin().write(&other(2), &[other(1)]).unwrap();
            let mut third = other(3);
            third.closed = other(2).protected;
            begin().write(&third, &begin().former()).unwrap();
            let all = [other(3), other(2), other(1)];
            assert_eq!(begin().former(), all);
            if lost != "neither" {
                fs::remove_dir_all(scratch.path(lost)).unwrap();
                fs::create_dir(scratch.path(lost)).unwrap();
            }
            assert_eq!(begin().former(), all, "{lost} was lost");
            let mut files = begin();
            retire(&mut files);
            for folder in &folders {
                fs::remove_dir_all(folder).unwrap();
                fs::create_dir(folder).unwrap();
            }
            assert_eq!(
                files.former(),
                all,
                "both were lost under a meshd that runs"
            );
            files.write(&other(1), &files.former()[..2]).unwrap();
            assert_eq!(begin().former(), [other(1), other(3), other(2)]);
        }
    }

    #[test]
    fn what_an_older_version_has_left_of_a_membership_is_known() {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path("state")).unwrap();
        let path = scratch.path("state/former-node.json");
        fs::write(&path, serde_json::to_vec(&file()).unwrap()).unwrap();
        let files = NodeFiles::new(&scratch.path("run"), &scratch.path("state"), None);
        assert_eq!(files.former(), [file()]);
        fs::write(&path, "[{}]").unwrap();
        assert_eq!(files.former(), []);
    }

    #[test]
    fn what_could_not_be_written_is_written_by_the_next_call() {
        for lost in ["run", "state"] {
            let scratch = Scratch::new();
            let (runtime, state) = (scratch.path("run"), scratch.path("state"));
            fs::create_dir(&runtime).unwrap();
            fs::create_dir(&state).unwrap();
            let env = Some(scratch.path("flannel/subnet.env"));
            let mut files = NodeFiles::new(&runtime, &state, env);
            files.write(&file(), &[]).unwrap();
            assert!(!files.keep_waiting());
            fs::remove_dir_all(scratch.path(lost)).unwrap();
            // Twice, since the first look may come before the second loss is mended.
            for _ in 0..2 {
                assert_eq!(files.write(&file(), &[]).unwrap_err().len(), 1);
                assert_eq!(files.keep_waiting(), lost == "run");
            }
            fs::create_dir(scratch.path(lost)).unwrap();
            files.write(&file(), &[]).unwrap();
            assert!(scratch.path(lost).join("node.json").exists(), "{lost}");
            assert!(!files.keep_waiting());
        }
    }

    #[test]
    fn another_programs_subnet_env_is_left_alone() {
        let scratch = Scratch::new();
        let (runtime, state) = (scratch.path("run"), scratch.path("state"));
        fs::create_dir(&runtime).unwrap();
        fs::create_dir(&state).unwrap();
        let env = scratch.path("subnet.env");
        fs::write(&env, "FLANNEL_MTU=1450\n").unwrap();
        let mut files = NodeFiles::new(&runtime, &state, Some(env.clone()));
        let trouble = files.write(&file(), &[]).unwrap_err();
        assert!(trouble[0].contains("another program's"), "{trouble:?}");
        assert!(runtime.join("node.json").exists());
        retire(&mut files);
        assert_eq!(fs::read_to_string(&env).unwrap(), "FLANNEL_MTU=1450\n");
    }
}
