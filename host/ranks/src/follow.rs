//! A process whose ranks belong to a group that another process leads.

use std::net::{Shutdown, TcpStream};
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
use crate::worker::{COMMANDS_MAX, Command, Failure, Orders};

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
    let _deaf = Deaf(stream.try_clone().map_err(lost)?);
    let given = attend(stream.try_clone().map_err(lost)?, group.orders(), give_up).map_err(lost)?;
    for () in given {
        let reply: RemoteReply = match group.replies() {
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

/// Hears no more commands once it is dropped: who passes them on ends, and only then can ranks that
/// wait for one. What was said before is still on its way.
struct Deaf(TcpStream);

impl Drop for Deaf {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Read);
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

/// Passes the leader's commands on to the ranks as they come, whatever is in flight: for each, one
/// reply is due. When it hangs up, `give_up` frees the ranks that wait for its ranks.
fn attend(mut stream: TcpStream, orders: Orders, give_up: GiveUp) -> std::io::Result<Receiver<()>> {
    let (outbox, given) = sync_channel(COMMANDS_MAX);
    let listen = move || {
        while let Ok(command) = wire::receive::<Command>(&mut stream) {
            orders.give(&command);
            if outbox.send(()).is_err() {
                return;
            }
        }
        give_up();
    };
    thread::Builder::new().name("leader".to_owned()).spawn(listen)?;
    Ok(given)
}

#[cfg(test)]
mod tests;
