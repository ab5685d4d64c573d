//! `pipe DEVICE LOCAL REMOTE`: moves packets between a TUN and a UDP socket and does nothing else.
//!
//! It has every offload that podmesh has, but no encryption, no lookup and no protocol: what it
//! reaches is the most that a tunnel in user space could reach on this kernel. IPv4 alone; a
//! measuring aid.
#![allow(clippy::print_stderr, reason = "a command line program talks")]

mod merge;
mod segment;
mod sys;

use std::net::SocketAddrV4;
use std::process::ExitCode;
use std::thread;

use merge::Run;
use sys::{Socket, Tun};

/// What the kernel hands over in one piece, with its virtio-net header.
const PIECE: usize = 65_535 + sys::HEADER;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pipe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [device, local, remote] = words else {
        return Err("usage: pipe DEVICE LOCAL-ADDRESS:PORT REMOTE-ADDRESS:PORT".into());
    };
    let (local, remote): (SocketAddrV4, SocketAddrV4) = (local.parse()?, remote.parse()?);
    let tun = Tun::open(device)?;
    let socket = Socket::connect(local, remote)?;
    thread::scope(|scope| {
        scope.spawn(|| outbound(&tun, &socket));
        inbound(&tun, &socket);
    });
    Ok(())
}

fn outbound(tun: &Tun, socket: &Socket) {
    let mut piece = vec![0; PIECE];
    let mut headers = segment::Headers::default();
    loop {
        let length = tun.read(&mut piece);
        if let Some(packet) = piece.get_mut(..length) {
            segment::send(packet, &mut headers, socket);
        }
    }
}

fn inbound(tun: &Tun, socket: &Socket) {
    let mut piece = vec![0; PIECE];
    loop {
        let (length, segment) = socket.receive(&mut piece);
        let mut rest = piece.get_mut(..length).unwrap_or_default();
        let mut run: Option<Run<'_>> = None;
        while !rest.is_empty() {
            let (packet, behind) = rest.split_at_mut(segment.min(rest.len()));
            rest = behind;
            run = match run {
                None => Some(Run::new(packet)),
                Some(mut open) => match open.join(packet) {
                    Ok(()) => Some(open),
                    Err(packet) => {
                        open.write(tun);
                        Some(Run::new(packet))
                    }
                },
            };
        }
        if let Some(run) = run {
            run.write(tun);
        }
    }
}
