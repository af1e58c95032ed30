//! A process whose ranks belong to a group that another process leads.

use std::net::TcpStream;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Instant;

use config::launch::Launch;
use contract::step::Fault;
use kernels::cuda::NcclName;

use crate::backend::{Backend, GiveUp};
use crate::error::StartError;
use crate::group::{Group, GroupSpec};
use crate::remote::{MEETING, PAUSE, RemoteReply, Welcome};
use crate::wire::{self, Wire};
use crate::worker::{Command, Failure};

/// Runs this process's ranks until the leader hangs up, or until one fails.
pub fn follow(spec: &GroupSpec<'_>, launch: &Launch) -> Result<(), StartError> {
    // What this machine lacks is said before the others count on it.
    Backend::choose(spec)?;
    let (stream, name) = meet(launch, &spec.description())?;
    let first = launch.process * (spec.parallel.tensor / launch.processes);
    let lost = |error: std::io::Error| meeting_failed(launch, error.to_string());
    let silent = stream.try_clone().map_err(lost)?;
    let attend = |give_up: &GiveUp| watch(silent, give_up.clone()).map_err(lost);
    let built = Group::part(spec, (launch, name), attend);
    obey(stream, (launch, first), built)
}

/// Tells the leader how these ranks came up, and does what it says until it hangs up or one fails.
/// The first of them is number `first` of all.
fn obey(
    mut stream: TcpStream,
    (launch, first): (&Launch, usize),
    built: Result<(Group, GiveUp), StartError>,
) -> Result<(), StartError> {
    let told: RemoteReply = built.as_ref().err().map(|error| match error {
        StartError::Rank { rank, message } => (Failure::Dead(message.clone()), *rank),
        error => (Failure::Dead(error.to_string()), first),
    });
    let lost = |error: std::io::Error| meeting_failed(launch, error.to_string());
    wire::send(&mut stream, |out| told.put(out)).map_err(lost)?;
    let (mut group, give_up) = built?;
    let commands = attend(stream.try_clone().map_err(lost)?, give_up).map_err(lost)?;
    for command in commands {
        let reply: RemoteReply = match group.call(&command) {
            Ok(_) => None,
            Err(Fault::Refused(message)) => Some((Failure::Refused(message), first)),
            Err(Fault::Dead { rank, message }) => Some((Failure::Dead(message), rank)),
        };
        let dead = matches!(reply, Some((Failure::Dead(_), _)));
        if wire::send(&mut stream, |out| reply.put(out)).is_err() || dead {
            break;
        }
    }
    match group.dead() {
        Some((rank, message)) => Err(StartError::Rank { rank, message }),
        None => Ok(()),
    }
}

/// Connects to the leader, tries again while it is not up, and says what this process is built of.
fn meet(launch: &Launch, what: &str) -> Result<(TcpStream, NcclName), StartError> {
    let deadline = Instant::now() + MEETING;
    let mut stream = loop {
        match TcpStream::connect((launch.leader.as_str(), launch.port)) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => {
                return Err(meeting_failed(launch, error.to_string()));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    };
    let failed = |error: std::io::Error| meeting_failed(launch, error.to_string());
    stream.set_nodelay(true).map_err(failed)?;
    wire::send(&mut stream, |out| (launch.process, what.to_owned()).put(out)).map_err(failed)?;
    let welcome: Welcome = wire::receive(&mut stream).map_err(failed)?;
    let name = welcome.map_err(|why| meeting_failed(launch, why))?;
    Ok((stream, name))
}

fn meeting_failed(launch: &Launch, why: String) -> StartError {
    let address = format!("{}:{}", launch.leader, launch.port);
    StartError::Meeting { what: "join the process at", address, why }
}

/// Watches a leader that has nothing to say until all ranks are built: when it hangs up, `give_up`
/// frees those that wait for its ranks to join. What it says first is left to who listens.
fn watch(stream: TcpStream, give_up: GiveUp) -> std::io::Result<()> {
    let watch = move || match stream.peek(&mut [0]) {
        Ok(1) => {}
        _ => give_up(),
    };
    thread::Builder::new().name("leader".to_owned()).spawn(watch).map(drop)
}

/// The leader's commands. When it hangs up, `give_up` frees the ranks that wait for its ranks.
fn attend(mut stream: TcpStream, give_up: GiveUp) -> std::io::Result<Receiver<Command>> {
    let (outbox, commands) = sync_channel(1);
    let listen = move || {
        while let Ok(command) = wire::receive::<Command>(&mut stream) {
            if outbox.send(command).is_err() {
                return;
            }
        }
        give_up();
    };
    thread::Builder::new().name("leader".to_owned()).spawn(listen)?;
    Ok(commands)
}

#[cfg(test)]
mod tests;
