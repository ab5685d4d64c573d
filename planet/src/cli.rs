//! The command line of `planet`.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{CommandFactory as _, Parser, Subcommand};
use podmesh_proto::id::{Name, PlanetId};
use podmesh_service::log;
use podmesh_service::start::{Brake, patiently};

use crate::admin::{self, Request, Response};
use crate::config::{Config, RUNTIME_DIR, STATE_DIR, Service};
use crate::identity::{self, KeyError};
use crate::problem::{FAILED, NOT_FOUND, PERMISSION, Problem, TIMEOUT, UNREACHABLE, USAGE};
use crate::restore::{self, Confirm};
use crate::rules::records::Origin;
use crate::rules::view::PlanetStatus;
use crate::run;
use crate::store::{self, Backup, DiskStore, StoreError, write_private};

/// The root server of a podmesh network: admits nodes, tells them about each other, introduces them
/// and relays for them. It can't read their traffic and can't add a member.
#[derive(Debug, Parser)]
#[command(name = "planet", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new planet: its key and its empty books
    Init {
        #[command(flatten)]
        state: State,
        /// The planet's name in network documents, for the hint that is printed
        #[arg(long)]
        name: Option<Name>,
    },
    /// Print the planet's key, by which networks name it
    Key {
        #[command(flatten)]
        state: State,
    },
    /// Serve the network of this document, which `meshctl network create` wrote
    Adopt {
        /// The network's document
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Serve until told to stop
    Run(Run),
    /// Show the running planet and its members
    Status {
        #[command(flatten)]
        runtime: Runtime,
        /// As JSON, with the schema podmesh.planet-status/v1
        #[arg(long)]
        json: bool,
    },
    /// Give the running planet a statement of the root, a revocation for example
    Statement {
        /// The statement, as meshctl wrote it
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Let a planet grant again that has lost receipts which nobody holds any more
    TrustEmpty {
        #[command(flatten)]
        runtime: Runtime,
    },
    /// Write everything that the planet keeps, except its key, into a file
    Backup {
        /// The file to write
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Put a backup in the place of the books; the planet asks its members for what came after it
    Restore {
        /// The file to read
        file: PathBuf,
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Run {
    /// Configuration file [default: /etc/podmesh/planet.toml, which may be missing]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where the planet keeps its key and its books [default: /var/lib/podmesh-planet]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Where the planet has its local socket [default: /run/podmesh-planet]
    #[arg(long)]
    runtime_dir: Option<PathBuf>,
    /// UDP address and port, by default port 7077 of all addresses
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Filter of the log
    #[arg(long)]
    log: Option<String>,
}

#[derive(Debug, clap::Args)]
struct State {
    /// Where the planet keeps its key and its books
    #[arg(long, default_value = STATE_DIR)]
    state_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Runtime {
    /// Where the planet has its local socket
    #[arg(long, default_value = RUNTIME_DIR)]
    runtime_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Place {
    #[command(flatten)]
    state: State,
    #[command(flatten)]
    runtime: Runtime,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What a person has to know, with the exit code.
    pub fn execute(self) -> Result<(), Problem> {
        match self.command {
            Command::Init { state, name } => init(&state.state_dir, name.as_ref()),
            Command::Key { state } => print(&planet_of(&state.state_dir)?.to_string()),
            Command::Adopt { file, place } => adopt(&file, &place),
            Command::Run(run) => run.execute(),
            Command::Status { runtime, json } => status(&runtime.runtime_dir, json),
            Command::Statement { file, place } => {
                let planet = planet_of(&place.state.state_dir)?;
                let statement = read(&file)?;
                let planet = Some(planet);
                let request = Request::Statement { planet, statement };
                finish(ask(&place.runtime.runtime_dir, &request)?)
            }
            Command::TrustEmpty { runtime } => {
                finish(ask(&runtime.runtime_dir, &Request::TrustEmpty)?)
            }
            Command::Backup { file, place } => backup(&file, &place),
            Command::Restore {
                file,
                state,
                confirm,
            } => restore(&file, &state.state_dir, &confirm),
            Command::Man { folder } => std::fs::create_dir_all(&folder)
                .and_then(|()| clap_mangen::generate_to(Self::command(), &folder))
                .map_err(|error| Problem::file(&folder, &error)),
        }
    }
}

fn init(state_dir: &Path, name: Option<&Name>) -> Result<(), Problem> {
    identity::prepare(state_dir)?;
    // The key comes last: where there is one, the books were there, too.
    match DiskStore::create(state_dir, Origin::Fresh) {
        Err(StoreError::Exists { path }) if !open(state_dir)?.is_untouched()? => {
            let key = state_dir.join(identity::FILE).display().to_string();
            return Err(KeyError::Gone { path, key }.into());
        }
        Err(StoreError::Exists { .. }) | Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let key = identity::create(state_dir)?;
    print(&format!("planet key: {}", key.planet_id()))?;
    let name = name.map_or_else(|| "NAME".to_owned(), ToString::to_string);
    hint(&format!(
        "next: meshctl network create NETWORK --planet {name}={}@HOST:PORT, then planet adopt its file",
        key.planet_id()
    ));
    Ok(())
}

fn adopt(file: &Path, place: &Place) -> Result<(), Problem> {
    let state_dir = &place.state.state_dir;
    let planet = planet_of(state_dir)?;
    let statement = read(file)?;
    match open(state_dir) {
        Ok(mut store) => print(&run::adopt(&mut store, &statement)?),
        Err(StoreError::InUse { .. }) => {
            let planet = Some(planet);
            let request = Request::Statement { planet, statement };
            finish(ask(&place.runtime.runtime_dir, &request)?)
        }
        Err(StoreError::Missing { .. }) => {
            let mut store = DiskStore::create(state_dir, Origin::Lost)?;
            print(&run::adopt(&mut store, &statement)?)
        }
        Err(error) => Err(error.into()),
    }
}

fn backup(file: &Path, place: &Place) -> Result<(), Problem> {
    if file.exists() {
        let message = format!("{} exists already; name another file", file.display());
        return Err(Problem::failed(message));
    }
    let state_dir = &place.state.state_dir;
    let planet = planet_of(state_dir)?;
    let content = match open(state_dir) {
        Ok(mut store) => store.backup(&planet)?,
        Err(StoreError::InUse { .. }) => {
            match ask(&place.runtime.runtime_dir, &Request::Backup { planet })? {
                Response::Backup { content } => STANDARD
                    .decode(content)
                    .map_err(|_| Problem::failed("the planet's answer makes no sense"))?,
                other => return finish(other),
            }
        }
        Err(error) => return Err(error.into()),
    };
    write_private(file, &content).map_err(|error| Problem::file(file, &error))?;
    let key = state_dir.join(identity::FILE);
    print(&format!(
        "wrote {} bytes to {}; the planet's key is not in it, keep a copy of {} apart",
        content.len(),
        file.display(),
        key.display()
    ))
}

fn restore(file: &Path, state_dir: &Path, confirm: &Confirm) -> Result<(), Problem> {
    let way_out = "move it away and restore again";
    guard_against_panics(state_dir, way_out);
    let planet = match identity::read(state_dir) {
        Err(KeyError::Missing { .. }) => {
            let key = state_dir.join(identity::FILE);
            return Err(Problem::new(
                NOT_FOUND,
                format!(
                    "there is no {}; put the copy of the planet's key there first, a backup doesn't hold it",
                    key.display()
                ),
            ));
        }
        key => key?.planet_id(),
    };
    let content = std::fs::read(file).map_err(|error| Problem::file(file, &error))?;
    let backup = Backup::read(&content)?;
    if backup.planet.is_none() {
        hint("planet: this backup is of an older version and doesn't say of which planet it is");
    }
    let doubts = restore::judge(backup, DiskStore::present(state_dir)?, &planet)?;
    if !doubts.is_empty() {
        confirm.ask(&doubts.join("; "))?;
    }
    let aside = DiskStore::restore(state_dir, &content)?;
    let aside = aside.map_or_else(String::new, |aside| {
        format!("; what was there is kept as {}", aside.display())
    });
    print(&format!(
        "restored{aside}; once it runs, the planet asks its members for what came after the backup"
    ))
}

impl Run {
    /// A planet that a service manager starts has patience with what keeps it from starting; a person
    /// who starts one wants to know.
    fn execute(self) -> Result<(), Problem> {
        let service = Service::from_environment();
        let attempt = || self.config().and_then(|config| serve(config, &service));
        if !service.is_there() {
            return attempt();
        }
        let brake = Brake::pull();
        let outcome = patiently(
            attempt,
            || !service.has_begun(),
            |problem| {
                service.say(&format!("STATUS=can't start yet: {problem}"));
                let message = format!("can't start yet, and tries again: {problem}");
                log::complain("planet", &message);
            },
        );
        if outcome.is_ok() {
            brake.forgive();
        }
        outcome
    }

    /// The file's, under what the command line says.
    fn config(&self) -> Result<Config, Problem> {
        let mut loaded = Config::load(self.config.as_deref())?;
        let own = self.clone();
        loaded.state_dir = own.state_dir.unwrap_or(loaded.state_dir);
        loaded.runtime_dir = own.runtime_dir.unwrap_or(loaded.runtime_dir);
        loaded.listen = own.listen.unwrap_or(loaded.listen);
        loaded.log = own.log.unwrap_or(loaded.log);
        Ok(loaded)
    }
}

fn serve(config: Config, service: &Service) -> Result<(), Problem> {
    log::start(&config.log, "").map_err(|message| Problem::new(USAGE, message))?;
    guard_against_panics(&config.state_dir, WAY_OUT);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.clamp(2, 8))
        .enable_all()
        .build()
        .map_err(|error| Problem::failed(error.to_string()))?
        .block_on(run::run(config, service))
}

fn status(runtime_dir: &Path, json: bool) -> Result<(), Problem> {
    match ask(runtime_dir, &Request::Status)? {
        Response::Status(status) if json => {
            let text = serde_json::to_string_pretty(&status);
            print(&text.map_err(|error| Problem::failed(error.to_string()))?)
        }
        Response::Status(status) => print(&describe(&status)),
        other => finish(other),
    }
}

fn describe(status: &PlanetStatus) -> String {
    let mut lines = vec![format!("planet {}", status.planet)];
    if let (Some(name), Some(id)) = (&status.network_name, &status.network) {
        let role = if status.arbiter {
            "gives the leases"
        } else {
            "gives no leases"
        };
        let version = status.network_version;
        lines.push(format!(
            "network {name} ({id}), version {version}; this planet {role}"
        ));
    }
    lines.extend(
        status
            .not_granting
            .iter()
            .map(|reason| format!("grants nothing: {reason}")),
    );
    lines.extend(
        status
            .write_error
            .iter()
            .map(|error| format!("can't write: {error}")),
    );
    lines.extend(
        status
            .remarks
            .iter()
            .map(|remark| format!("look: {remark}")),
    );
    let online = status.members.iter().filter(|member| member.online).count();
    lines.push(format!(
        "{} members, {online} connected; {} admitted without a claim; receipt {}; {} relay sessions, {} frames relayed",
        status.members.len(),
        status.pending,
        status.sequence,
        status.relay_sessions,
        status.relay.forwarded
    ));
    for member in &status.members {
        let overlay = member
            .overlay4
            .map_or_else(|| "-".to_owned(), |address| address.to_string());
        let cidrs: Vec<String> = member.pod_cidrs.iter().map(ToString::to_string).collect();
        let remote = member
            .remote
            .map_or_else(|| "-".to_owned(), |remote| remote.to_string());
        let state = if member.online { "online" } else { "offline" };
        lines.push(format!(
            "  {:<20} {state:<8} {overlay:<15} {} {remote} {}",
            member.name,
            cidrs.join(","),
            member.node
        ));
    }
    lines.join("\n")
}

fn ask(runtime_dir: &Path, request: &Request) -> Result<Response, Problem> {
    admin::ask(runtime_dir, request).map_err(|error| {
        let socket = runtime_dir.join(admin::SOCKET);
        let socket = socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Problem::new(PERMISSION, format!("may not use {socket}; use sudo, or become a member of the group podmesh-planet to read"))
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Problem::new(TIMEOUT, format!("the planet at {socket} doesn't answer"))
            }
            _ => Problem::new(
                UNREACHABLE,
                format!("no planet answers at {socket} ({error}); start it with `planet run`, or see --runtime-dir"),
            ),
        }
    })
}

fn finish(response: Response) -> Result<(), Problem> {
    match response {
        Response::Done { message } => print(&message),
        Response::Failed {
            message,
            permission,
        } => Err(Problem::new(
            if permission { PERMISSION } else { FAILED },
            message,
        )),
        Response::Status(_)
        | Response::Backup { .. }
        | Response::Network { .. }
        | Response::Registry(_) => Err(Problem::failed("the planet's answer makes no sense")),
    }
}

fn planet_of(state_dir: &Path) -> Result<PlanetId, Problem> {
    guard_against_panics(state_dir, WAY_OUT);
    Ok(identity::read(state_dir)?.planet_id())
}

fn open(state_dir: &Path) -> Result<DiskStore, StoreError> {
    guard_against_panics(state_dir, WAY_OUT);
    DiskStore::open(state_dir)
}

/// Out of damaged books.
const WAY_OUT: &str = "restore a backup with `planet restore FILE`, or move the file away: the planet then \
                       asks its members for what it has forgotten";

/// The database gives up on some kinds of damage by a panic; the operator gets the same sentence.
fn guard_against_panics(state_dir: &Path, way_out: &'static str) {
    let store = state_dir.join(store::FILE).display().to_string();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map_or("", |place| place.file());
        if place.contains("redb") {
            hint(&format!("planet: {store} is damaged; {way_out}"));
            std::process::exit(i32::from(FAILED));
        }
        usual(panic);
    }));
}

fn read(file: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(file).map_err(|error| Problem::file(file, &error))
}

fn print(text: &str) -> Result<(), Problem> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Problem::failed(error.to_string()))
        }
        _ => Ok(()),
    }
}

fn hint(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
