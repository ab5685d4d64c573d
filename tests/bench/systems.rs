//! What is measured, and how each is started.

mod bare;
mod nebula;
mod podmesh;
mod tinc;
mod wireguard;

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use podmesh_lab::process::{self, Process};
use podmesh_lab::{Namespace, Pod, wait};

use crate::gauge::Extent;
use crate::ground::{Ground, LinkMode};

/// A tunnel, or what it is compared with.
pub(crate) trait System {
    /// Its name in the figures.
    fn name(&self) -> &'static str;

    /// Which one exactly.
    ///
    /// # Errors
    ///
    /// If the machine doesn't have it.
    fn version(&self) -> Result<String>;

    /// Whether podmesh is held against it: such are measured in every round and on every link,
    /// others in three rounds on the plain one.
    fn is_yardstick(&self) -> bool {
        false
    }

    /// Whether it is worth the time.
    fn takes_part(&self, mode: LinkMode, round: u32) -> bool {
        self.is_yardstick() || (mode == LinkMode::Whole && round <= 3)
    }

    /// What is worth measuring.
    fn extent(&self, mode: LinkMode) -> Extent {
        match mode {
            LinkMode::Wire => Extent::OneStream,
            LinkMode::Whole if self.is_yardstick() => Extent::WithFloods,
            LinkMode::Whole => Extent::Streams,
        }
    }

    /// Starts it on both sides.
    ///
    /// # Errors
    ///
    /// If one of its programs refuses.
    fn start(&self, ground: &Ground) -> Result<Overlay>;
}

/// A system that runs; it ends when dropped.
pub(crate) struct Overlay {
    /// Addresses of the two sides.
    pub(crate) ends: [IpAddr; 2],
    /// The programs that move packets, one per side; none if the kernel does it alone.
    pub(crate) daemons: Vec<Process>,
    /// The address of a third machine, whose only peer is the first side.
    pub(crate) third: Option<IpAddr>,
    /// Pods behind the two sides.
    pub(crate) pods: Vec<Pod>,
    /// Programs that move no packets, kept alive.
    _helpers: Vec<Process>,
}

/// Bytes, of every tunnel that can be told.
pub(crate) const MTU: u16 = 1_420;
const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);

/// All systems. Programs are looked for in `peers`, then in PATH.
pub(crate) fn all(peers: &Path) -> Vec<Box<dyn System>> {
    vec![
        Box::new(bare::Raw),
        Box::new(bare::Vxlan),
        Box::new(bare::Pipe),
        Box::new(podmesh::plain()),
        Box::new(podmesh::wide()),
        Box::new(wireguard::boringtun(peers)),
        Box::new(wireguard::gotatun(peers)),
        Box::new(wireguard::wireguard_go()),
        Box::new(nebula::Nebula),
        Box::new(tinc::Tinc),
    ]
}

impl Overlay {
    /// Of programs that run on both sides; `ENDS` are the addresses.
    fn of(daemons: Vec<Process>) -> Self {
        Self {
            ends: ENDS.map(IpAddr::V4),
            daemons,
            third: None,
            pods: Vec::new(),
            _helpers: Vec::new(),
        }
    }

    /// Waits until the far side answers.
    pub(crate) fn wait(&self, ground: &Ground) -> Result<()> {
        for far in [Some(self.ends[1]), self.third].into_iter().flatten() {
            self.wait_for(far, ground)?;
        }
        Ok(())
    }

    fn wait_for(&self, far: IpAddr, ground: &Ground) -> Result<()> {
        let [near, _] = &ground.sides;
        wait::until("the far side to answer", Duration::from_secs(40), || {
            let mut ping = near.command("ping");
            ping.args(["-q", "-c", "1", "-W", "1", &far.to_string()]);
            let output = process::output(&mut ping, b"", process::SHORT)?;
            if let Some(gone) = self.daemons.iter().find(|one| one.ended().is_some()) {
                bail!("a program ended: {}", gone.last_words(5));
            }
            Ok(if output.status.success() {
                wait::Now(())
            } else {
                wait::NotYet("no answer".into())
            })
        })
    }
}

/// Starts the same program on both sides; `words` says what each is told.
fn on_both<W: AsRef<OsStr>>(
    ground: &Ground,
    program: &Path,
    words: impl Fn(usize) -> Vec<W>,
) -> Result<Vec<Process>> {
    let sides = (0..).zip(&ground.sides);
    sides
        .map(|(side, namespace)| start(ground, (namespace, side), program, words(side)))
        .collect()
}

fn start<W: AsRef<OsStr>>(
    ground: &Ground,
    (namespace, number): (&Namespace, usize),
    program: &Path,
    words: Vec<W>,
) -> Result<Process> {
    let name = program.file_name().and_then(OsStr::to_str).unwrap_or("?");
    let mut command = namespace.command(program);
    command.args(words);
    let log = ground.folder().join(format!("{name}-{number}.log"));
    Process::start(name, command, &log)
}

/// Gives the device that a program makes on each side its address and MTU.
fn address(ground: &Ground, device: &str, mtu: u16) -> Result<()> {
    for (side, end) in ground.sides.iter().zip(ENDS) {
        address_of(side, end, (device, mtu))?;
    }
    Ok(())
}

fn address_of(side: &Namespace, end: Ipv4Addr, (device, mtu): (&str, u16)) -> Result<()> {
    wait::until(&format!("the device {device}"), process::SHORT, || {
        side.run(&["ip", "link", "show", device])?;
        Ok(wait::Now(()))
    })?;
    side.ip(&format!(
        "address replace {end}/24 dev {device}\nlink set {device} up mtu {mtu}"
    ))
}

/// A program in `folder`, or in PATH.
fn find(folder: Option<&Path>, name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = folder
        .map(Path::to_owned)
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .map(|file| file.canonicalize().unwrap_or(file))
        .with_context(|| format!("{name} is not installed; make bench installs it"))
}

/// The first line that a program prints, without its own name.
fn said_version(program: &Path, words: &[&str], noise: &str) -> Result<String> {
    let text = process::succeed(Command::new(program).args(words), b"")?;
    let line = text.lines().next().unwrap_or_default();
    Ok(line.replace(noise, "").trim().to_owned())
}

/// The version of an installed Debian package.
fn package_version(name: &str) -> Result<String> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Version}", name]);
    process::succeed(&mut query, b"")
}
