//! The public core of a lab: one router in user space that every site hangs on.
//!
//! The kernels that a lab runs on need not have netem, so delay, loss, duplication and reordering
//! happen here. Each attached interface is one end of a veth pair; the other end lies in a
//! namespace without any address, where a thread reads whole frames, looks up the public
//! destination address, and sends the frame on after the time that lies between the two sites.
//! Like a router it lowers the TTL, except between neighbours, and knows nothing about private addresses: those it drops.
//!
//! `frame` reads and changes frames, `switch` is the thread.

mod frame;
mod switch;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;

pub use switch::WireReport;

use crate::namespace::Namespace;
use crate::process;
use crate::sys::{self, PacketSocket};
use switch::Switch;

/// The address of the core on every attached interface, as a gateway that is on the link.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The same in IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The hardware address of the core on every attached interface.
pub const GATEWAY_MAC: &str = "02:00:5e:00:00:01";

/// What lies between two sites, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Link {
    /// One-way delay.
    pub delay: Duration,
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Share of packets that arrive twice, 0 to 1.
    pub duplicate: f64,
    /// The two routers stand next door to each other: no router lies between them.
    pub next_door: bool,
    /// Share of packets that arrive [`Link::REORDER_HOLD`] late, behind their followers, 0 to 1.
    pub reorder: f64,
}

impl Link {
    /// How much later a reordered packet arrives.
    pub const REORDER_HOLD: Duration = Duration::from_millis(5);

    /// A link that carries nothing.
    pub const CUT: Self = Self {
        loss: 1.0,
        ..Self::delay(Duration::ZERO)
    };

    /// A link between neighbours, which is as fast as the machine.
    pub const NEXT_DOOR: Self = Self {
        next_door: true,
        ..Self::delay(Duration::ZERO)
    };

    /// A link with a one-way delay and no faults.
    pub const fn delay(delay: Duration) -> Self {
        Self {
            delay,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            next_door: false,
        }
    }
}

/// One attached interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u32);

/// The core and its thread; both end when dropped.
#[derive(Debug)]
pub struct Wire {
    core: Namespace,
    orders: Sender<Order>,
    wake: UnixStream,
    next_port: AtomicU32,
    links: Mutex<BTreeMap<(String, String), Link>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is told; each order is acknowledged when it is in force.
#[derive(Debug)]
struct Order {
    what: Change,
    done: Sender<WireReport>,
}

#[derive(Debug)]
enum Change {
    Attach {
        port: Port,
        site: String,
        socket: PacketSocket,
        mac: [u8; 6],
    },
    Detach(Port),
    Route(IpNet, Port),
    Link {
        from: String,
        to: String,
        link: Link,
    },
    Report,
    Stop,
}

impl Wire {
    /// Starts an empty core. The same `seed` loses the same packets of the same traffic.
    ///
    /// # Errors
    ///
    /// If the namespace can't be made.
    pub fn start(lab: u32, seed: u64) -> Result<Self> {
        let core = Namespace::create(lab, "core")?;
        core.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        core.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        core.sysctl("net.ipv4.ip_forward", "0")?;
        let (orders, inbox): (_, Receiver<Order>) = mpsc::channel();
        let (wake, bell) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        let switch = Switch::new(inbox, bell, seed);
        let thread = thread::Builder::new().name("wire".into()).spawn(move || {
            sys::run_punctually();
            switch.run();
        })?;
        Ok(Self {
            core,
            orders,
            wake,
            next_port: AtomicU32::new(1),
            links: Mutex::default(),
            thread: Some(thread),
        })
    }

    /// Hangs a new interface of `namespace` on the core, at the place called `site`.
    ///
    /// The interface is up, has no address yet, and knows the core as its neighbour.
    ///
    /// # Errors
    ///
    /// If the interface can't be made.
    pub fn attach(&self, site: &str, namespace: &Namespace, interface: &str) -> Result<Port> {
        let port = Port(self.next_port.fetch_add(1, Ordering::Relaxed));
        let mac = port.mac();
        let end = port.interface();
        let lines = format!(
            "link add name {interface} netns {} mtu 1500 address {} type veth \
             peer name {end} netns {} mtu 1500\n",
            namespace.name(),
            frame::mac_text(mac),
            self.core.name(),
        );
        let mut ip = std::process::Command::new("ip");
        process::succeed(ip.args(["-batch", "-"]), lines.as_bytes()).context(lines)?;
        namespace.inside(|| sys::disable_offloads(interface))??;
        let socket = self.core.inside(|| {
            sys::disable_offloads(&end)?;
            PacketSocket::open(&end)
        })??;
        self.core.ip(&format!("link set {end} arp off up"))?;
        namespace.ip(&format!(
            "link set {interface} up\n\
             neigh add {GATEWAY_V4} lladdr {GATEWAY_MAC} dev {interface} nud permanent\n"
        ))?;
        self.order(Change::Attach {
            port,
            site: site.to_owned(),
            socket,
            mac,
        })?;
        Ok(port)
    }

    /// Takes an interface off the core and destroys it, as pulling a cable for good.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn detach(&self, port: Port) -> Result<()> {
        self.order(Change::Detach(port))?;
        self.core.ip(&format!("link delete {}", port.interface()))
    }

    /// Sends packets for `range` to `port` from now on.
    ///
    /// # Errors
    ///
    /// If the core has stopped.
    pub fn route(&self, range: IpNet, port: Port) -> Result<()> {
        self.order(Change::Route(range, port)).map(drop)
    }

    /// Sets what lies between two sites, in the direction from the first to the second.
    ///
    /// # Errors
    ///
    /// If the core has stopped.
    pub fn set_link(&self, from: &str, to: &str, link: Link) -> Result<()> {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((from.to_owned(), to.to_owned()), link);
        self.order(Change::Link {
            from: from.to_owned(),
            to: to.to_owned(),
            link,
        })
        .map(drop)
    }

    /// What lies between two sites, in the direction from the first to the second.
    pub fn link(&self, from: &str, to: &str) -> Link {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links
            .get(&(from.to_owned(), to.to_owned()))
            .copied()
            .unwrap_or_default()
    }

    /// What the core has carried and how late it was.
    ///
    /// # Errors
    ///
    /// If the core has stopped.
    pub fn report(&self) -> Result<WireReport> {
        self.order(Change::Report)
    }

    /// The namespace with the far ends of all attached interfaces.
    pub fn core(&self) -> &Namespace {
        &self.core
    }

    fn order(&self, what: Change) -> Result<WireReport> {
        let (done, answer) = mpsc::channel();
        self.orders
            .send(Order { what, done })
            .map_err(|_| anyhow!("the core has stopped"))?;
        (&self.wake).write_all(&[1])?;
        answer
            .recv_timeout(process::SHORT)
            .context("the core does not answer")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // Both fail only if the thread has ended by itself.
        let _ = self.order(Change::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Port {
    /// The name of the far end inside the core's namespace.
    pub fn interface(self) -> String {
        format!("port-{}", self.0)
    }

    fn mac(self) -> [u8; 6] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [0x02, 0x5e, a, b, c, d]
    }
}
