//! The ranks of a group that live in other processes, seen from the one that leads.
//!
//! Processes meet at the leader's address. There each says what it is built of, which has to be
//! what the leader is built of, and hears the name of the collective. After that a command goes out
//! to all and a reply comes back from each. A connection that ends ends the group. Nobody is asked
//! for a key: the network between the processes is trusted, as NCCL trusts it.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use config::launch::Launch;
use kernels::cuda::NcclName;

use crate::backend::GiveUp;
use crate::error::StartError;
use crate::wire::{self, Wire};
use crate::worker::{COMMANDS_MAX, Command, Failure};

/// How long processes wait for each other to start: images may still be loading.
pub const MEETING: Duration = Duration::from_secs(300);

/// How long a process that has connected may take to say who it is.
const GREETING: Duration = Duration::from_secs(10);

/// Between two tries to connect or to accept.
pub const PAUSE: Duration = Duration::from_millis(100);

/// What a process says first: which one it is, and what it is built of.
pub type Hello = (usize, String);

/// What the leader answers: the name of the collective, or why not.
pub type Welcome = Result<NcclName, String>;

/// What came of a command: the failure, and the rank that had it, counted over all processes.
pub type RemoteReply = Option<(Failure, usize)>;

/// The other processes of a group. Dropping it ends them.
pub struct Remotes {
    peers: Vec<Peer>,
    /// Whether it is us who ended the connections.
    hung_up: bool,
}

struct Peer {
    stream: TcpStream,
    /// Its ranks.
    ranks: Range<usize>,
    replies: Receiver<RemoteReply>,
}

impl Remotes {
    /// Waits until all other processes are here, each with `each` ranks and built of `what`.
    pub fn gather(
        launch: &Launch,
        (each, what): (usize, &str),
        name: &NcclName,
    ) -> Result<Self, StartError> {
        let listener = listen(launch).map_err(|source| StartError::Meeting {
            what: "listen on",
            address: format!("{}:{}", launch.leader, launch.port),
            why: source.to_string(),
        })?;
        let deadline = Instant::now() + MEETING;
        let mut streams: Vec<Option<TcpStream>> = (1..launch.processes).map(|_| None).collect();
        while let Some(missing) = streams.iter().position(Option::is_none) {
            if Instant::now() > deadline {
                return Err(StartError::Absent {
                    process: missing + 1,
                    seconds: MEETING.as_secs(),
                });
            }
            match listener.accept() {
                // Who is not one of ours costs us a greeting, no more.
                Ok((stream, _)) => drop(greet(stream, what, name, &mut streams)),
                Err(_) => thread::sleep(PAUSE),
            }
        }
        let peer = |(index, stream): (usize, TcpStream)| {
            let ranks = (index + 1) * each..(index + 2) * each;
            Peer { stream, ranks, replies: sync_channel(0).1 }
        };
        let peers = streams.into_iter().flatten().enumerate().map(peer).collect();
        Ok(Self { peers, hung_up: false })
    }

    /// Starts listening for replies. When a connection ends, `give_up` frees this process's ranks.
    pub fn attend(&mut self, give_up: &GiveUp) -> io::Result<()> {
        for peer in &mut self.peers {
            let (outbox, replies) = sync_channel(COMMANDS_MAX);
            peer.replies = replies;
            let (mut stream, give_up) = (peer.stream.try_clone()?, give_up.clone());
            let listen = move || {
                while let Ok(reply) = wire::receive::<RemoteReply>(&mut stream) {
                    if outbox.send(reply).is_err() {
                        return;
                    }
                }
                give_up();
            };
            thread::Builder::new().name("remote".to_owned()).spawn(listen)?;
        }
        Ok(())
    }

    /// Passes a command on. If a process has gone, [`Self::replies`] says so.
    pub fn send(&mut self, command: &Command) {
        for peer in &mut self.peers {
            // What cannot be sent has no reply either.
            let _ = wire::send(&mut peer.stream, |out| command.put_part(&peer.ranks, out));
        }
    }

    /// One reply of every process: failures and their ranks.
    pub fn replies(&mut self) -> Vec<(Failure, usize)> {
        let gone = if self.hung_up { Failure::Follower } else { Failure::Dead };
        let reply = |peer: &Peer| match peer.replies.recv() {
            Ok(reply) => reply,
            Err(_) => {
                let text = "its process has gone, or the connection to it".to_owned();
                Some((gone(text), peer.ranks.start))
            }
        };
        self.peers.iter().filter_map(reply).collect()
    }

    /// Ends all connections: the other processes' ranks are freed, and so is who waits for them.
    pub fn hang_up(&mut self) {
        self.hung_up = true;
        for peer in &self.peers {
            // It may be closed already.
            let _ = peer.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Remotes {
    fn drop(&mut self) {
        self.hang_up();
    }
}

fn listen(launch: &Launch) -> io::Result<TcpListener> {
    let addresses: Vec<_> = (launch.leader.as_str(), launch.port).to_socket_addrs()?.collect();
    let listener = TcpListener::bind(addresses.as_slice())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Hears out a process, and takes or refuses it.
fn greet(
    mut stream: TcpStream,
    what: &str,
    name: &NcclName,
    streams: &mut [Option<TcpStream>],
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETING))?;
    let (process, theirs): Hello = wire::receive(&mut stream)?;
    let welcome: Welcome = match process.checked_sub(1).map(|index| streams.get_mut(index)) {
        _ if theirs != what => Err(format!("it is built of {theirs}, the first of {what}")),
        Some(Some(place)) if place.is_none() => {
            *place = Some(stream.try_clone()?);
            Ok(*name)
        }
        _ => Err(format!("process {process} is here already, or not one of this group")),
    };
    let refused = welcome.is_err();
    wire::send(&mut stream, |out| welcome.put(out))?;
    if !refused {
        stream.set_read_timeout(None)?;
    }
    Ok(())
}
