//! Which GPU each rank gets, and how ranks on GPUs talk.

use std::ops::Range;

use config::launch::Launch;
use config::settings::{CommKind, Parallel};
use kernels::cuda::{self, Found, PEERS_MAX};

/// One device for each rank of this process, and how all ranks talk.
#[derive(Clone, Debug)]
pub struct Gpus {
    /// Of each own rank, in order; may repeat.
    pub devices: Vec<Found>,
    pub link: Link,
    /// The ranks of this process, and how many there are in all.
    pub own: Range<usize>,
    pub ranks: usize,
}

/// How ranks on GPUs talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// There is one rank.
    Solo,
    /// Over each other's memory.
    Peer,
    /// By NCCL.
    Nccl,
}

impl Gpus {
    /// What `parallel` asks of this process, of what this machine has.
    pub fn choose(parallel: &Parallel, launch: Option<&Launch>) -> Result<Self, String> {
        let own = own_ranks(parallel.tensor, launch)?;
        let found = cuda::found().map_err(|why| why.to_string())?;
        let devices = assign(&found, parallel, (&own, launch))?;
        let link = match launch {
            None => link(parallel.comm, &devices, &Machine)?,
            Some(_) => link_between_processes(parallel.comm, &Machine)?,
        };
        Ok(Self { devices, link, own, ranks: parallel.tensor })
    }

    /// Ranks on the device of one of this process's ranks.
    pub fn sharing(&self, index: usize) -> usize {
        let own = self.devices[index].ordinal;
        self.devices.iter().filter(|device| device.ordinal == own).count()
    }
}

/// The ranks of this process.
fn own_ranks(ranks: usize, launch: Option<&Launch>) -> Result<Range<usize>, String> {
    let Some(Launch { process, processes, .. }) = launch else { return Ok(0..ranks) };
    match ranks % processes {
        0 => {
            let each = ranks / processes;
            Ok(process * each..(process + 1) * each)
        }
        _ => Err(format!(
            "tensor = {ranks} on {processes} processes: as many ranks in each would do"
        )),
    }
}

/// The device of every rank of this process: the one configured, or counted up on every host.
fn assign(
    found: &[Found],
    parallel: &Parallel,
    (own, launch): (&Range<usize>, Option<&Launch>),
) -> Result<Vec<Found>, String> {
    let first = match launch {
        None => own.start,
        Some(launch) => launch.local.unwrap_or(0) * own.len(),
    };
    let device = |index: usize| {
        let configured = parallel.devices.get(own.start + index).copied();
        let wanted = configured.unwrap_or(first + index);
        let device = found.iter().find(|device| device.ordinal == wanted);
        device.cloned().ok_or_else(|| missing(found, own.len(), wanted))
    };
    (0..own.len()).map(device).collect()
}

fn missing(found: &[Found], ranks: usize, wanted: usize) -> String {
    let names = found.iter().map(|device| format!("{} ({})", device.ordinal, device.name));
    let names = names.collect::<Vec<_>>().join(", ");
    let why = format!("there is no device {wanted}: found {names}");
    match ranks {
        1 => why,
        _ => {
            let repeated = vec![found.first().map_or(0, |device| device.ordinal); ranks];
            format!("tensor = {ranks}: {why}; devices = {repeated:?} puts all ranks on one")
        }
    }
}

/// What this machine can do for ranks that talk.
trait Means {
    /// Whether all devices reach each other's memory.
    fn peer(&self, devices: &[Found]) -> Result<(), String>;

    /// Whether NCCL is here.
    fn nccl(&self) -> Result<(), String>;
}

/// How the ranks on these devices talk.
fn link(comm: CommKind, devices: &[Found], means: &impl Means) -> Result<Link, String> {
    let ranks = devices.len();
    if ranks == 1 {
        return Ok(Link::Solo);
    }
    let peer = || {
        if ranks > PEERS_MAX {
            return Err(format!("comm = \"peer\" takes up to {PEERS_MAX} ranks, not {ranks}"));
        }
        means.peer(devices).map(|()| Link::Peer).map_err(|why| format!("comm = \"peer\": {why}"))
    };
    let nccl =
        || means.nccl().map(|()| Link::Nccl).map_err(|why| format!("comm = \"nccl\": {why}"));
    match comm {
        CommKind::Threads => {
            Err("comm = \"threads\" is for the CPU; \"peer\", \"nccl\" or \"auto\" would do"
                .to_owned())
        }
        CommKind::Peer => peer(),
        CommKind::Nccl => nccl(),
        CommKind::Auto => peer().or_else(|why| nccl().map_err(|other| format!("{why}; {other}"))),
    }
}

/// How ranks talk that are not all in one process.
fn link_between_processes(comm: CommKind, means: &impl Means) -> Result<Link, String> {
    match comm {
        CommKind::Auto | CommKind::Nccl => {
            means.nccl().map(|()| Link::Nccl).map_err(|why| format!("comm = \"nccl\": {why}"))
        }
        CommKind::Peer | CommKind::Threads => {
            Err("ranks of several processes talk by comm = \"nccl\" only".to_owned())
        }
    }
}

/// The machine this runs on.
struct Machine;

impl Means for Machine {
    fn peer(&self, devices: &[Found]) -> Result<(), String> {
        let ordinals = || devices.iter().map(|device| device.ordinal);
        for (from, to) in ordinals().flat_map(|from| ordinals().map(move |to| (from, to))) {
            if !cuda::reaches(from, to).map_err(|error| error.to_string())? {
                return Err(format!("device {from} cannot reach the memory of device {to}"));
            }
        }
        Ok(())
    }

    fn nccl(&self) -> Result<(), String> {
        cuda::nccl_version().map(drop).map_err(|why| why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use config::settings::Backend;

    use super::*;

    fn found(count: usize) -> Vec<Found> {
        let device = |ordinal| Found {
            ordinal,
            name: "Card".to_owned(),
            capability: (9, 0),
            memory: 1 << 30,
        };
        (0..count).map(device).collect()
    }

    fn parallel(tensor: usize, devices: &[usize]) -> Parallel {
        Parallel {
            backend: Backend::Cuda,
            tensor,
            replicas: 1,
            threads: None,
            comm: CommKind::Auto,
            devices: devices.to_vec(),
        }
    }

    #[test]
    fn ranks_get_the_devices_they_ask_for_and_may_share_one() {
        let ordinals = |count, tensor, devices: &[usize]| {
            let own = 0..tensor;
            let devices = assign(&found(count), &parallel(tensor, devices), (&own, None)).unwrap();
            let gpus = Gpus { devices, link: Link::Peer, own, ranks: tensor };
            let ordinals = gpus.devices.iter().map(|device| device.ordinal).collect::<Vec<_>>();
            (ordinals, gpus.sharing(0))
        };
        assert_eq!(ordinals(2, 2, &[]), (vec![0, 1], 1));
        assert_eq!(ordinals(4, 2, &[3, 1]), (vec![3, 1], 1));
        assert_eq!(ordinals(1, 3, &[0, 0, 0]), (vec![0, 0, 0], 3));
    }

    fn launched(process: usize, processes: usize, local: Option<usize>) -> Launch {
        Launch { process, processes, local, leader: "head".to_owned(), port: 1 }
    }

    #[test]
    fn processes_get_their_share_of_ranks_and_count_devices_on_their_host() {
        let ordinals = |launch: &Launch, devices: &[usize]| {
            let parallel = parallel(8, devices);
            let own = own_ranks(8, Some(launch)).unwrap();
            let devices = assign(&found(8), &parallel, (&own, Some(launch))).unwrap();
            (own, devices.iter().map(|device| device.ordinal).collect::<Vec<_>>())
        };
        // One process a device on two hosts of four, one process a host, and devices by name.
        assert_eq!(ordinals(&launched(5, 8, Some(1)), &[]), (5..6, vec![1]));
        assert_eq!(ordinals(&launched(1, 2, None), &[]), (4..8, vec![0, 1, 2, 3]));
        let named = [7, 6, 5, 4, 3, 2, 1, 0];
        assert_eq!(ordinals(&launched(1, 4, Some(0)), &named), (2..4, vec![5, 4]));
        let why = own_ranks(8, Some(&launched(0, 3, None))).unwrap_err();
        assert!(why.contains("tensor = 8 on 3 processes"), "{why}");
    }

    #[test]
    fn processes_talk_by_nccl_only() {
        let can = Can(Ok(()), Ok(()));
        assert_eq!(link_between_processes(CommKind::Auto, &can), Ok(Link::Nccl));
        let why = link_between_processes(CommKind::Peer, &can).unwrap_err();
        assert!(why.contains("\"nccl\" only"), "{why}");
    }

    #[test]
    fn more_ranks_than_devices_are_told_what_was_found_and_what_would_do() {
        let why = assign(&found(2), &parallel(4, &[]), (&(0..4), None)).unwrap_err();
        assert!(why.contains("tensor = 4"), "{why}");
        assert!(why.contains("no device 2: found 0 (Card), 1 (Card)"), "{why}");
        assert!(why.contains("devices = [0, 0, 0, 0]"), "{why}");
        let why = assign(&found(1), &parallel(1, &[7]), (&(0..1), None)).unwrap_err();
        assert_eq!(why, "there is no device 7: found 0 (Card)");
    }

    /// A machine that can do what the strings do not forbid.
    struct Can(Result<(), &'static str>, Result<(), &'static str>);

    impl Means for Can {
        fn peer(&self, _: &[Found]) -> Result<(), String> {
            self.0.map_err(str::to_owned)
        }

        fn nccl(&self) -> Result<(), String> {
            self.1.map_err(str::to_owned)
        }
    }

    #[test]
    fn ranks_talk_as_configured_and_as_the_devices_can() {
        let link = |comm, ranks, can: &Can| link(comm, &found(ranks), can);
        let (all, no_peers) = (Can(Ok(()), Ok(())), Can(Err("too far"), Ok(())));
        let nothing = Can(Err("too far"), Err("no library"));
        assert_eq!(link(CommKind::Nccl, 1, &nothing), Ok(Link::Solo));
        assert_eq!(link(CommKind::Auto, 2, &all), Ok(Link::Peer));
        assert_eq!(link(CommKind::Auto, 2, &no_peers), Ok(Link::Nccl));
        assert_eq!(link(CommKind::Auto, 9, &all), Ok(Link::Nccl));
        assert_eq!(link(CommKind::Nccl, 2, &all), Ok(Link::Nccl));
        let says = |comm, ranks, can: &Can, parts: &[&str]| {
            let why = link(comm, ranks, can).unwrap_err();
            assert!(parts.iter().all(|part| why.contains(part)), "{why:?} lacks one of {parts:?}");
        };
        says(CommKind::Peer, 2, &no_peers, &["\"peer\"", "too far"]);
        says(CommKind::Auto, 2, &nothing, &["too far", "no library"]);
        says(CommKind::Nccl, 2, &nothing, &["\"nccl\"", "no library"]);
        says(CommKind::Threads, 2, &all, &["\"threads\""]);
        says(CommKind::Peer, 9, &all, &["up to 8 ranks"]);
    }
}
