//! Which GPU each rank gets, and how ranks on GPUs talk.

use std::ops::Range;

use config::launch::Launch;
use config::settings::{CommKind, Parallel};
use kernels::cuda::{self, Found, PEERS_MAX, WhyNot};
use model::room::Neighbours;

use crate::group::GroupSpec;

/// One device for each rank of this process, and how all ranks talk.
#[derive(Clone, Debug)]
pub struct Gpus {
    /// Of each own rank, in order; may repeat.
    pub devices: Vec<Found>,
    pub link: Link,
    /// The ranks of this process, and how many there are in all.
    pub own: Range<usize>,
    pub ranks: usize,
    /// Devices of the ranks of other replicas: of those that started before, and of those to come.
    others: [Vec<usize>; 2],
}

/// Why ranks get no GPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// CUDA does not run here.
    #[error(transparent)]
    Cuda(#[from] WhyNot),
    /// There are GPUs, but not for what is configured.
    #[error("{0}")]
    Fit(String),
}

impl Lack {
    /// Whether the machine just has no GPU, and nobody would expect one to be used.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Cuda(why) if why.is_plain())
    }
}

impl From<String> for Lack {
    fn from(why: String) -> Self {
        Self::Fit(why)
    }
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
    /// What a group asks of this process, of what this machine has.
    pub fn choose(spec: &GroupSpec<'_>) -> Result<Self, Lack> {
        let GroupSpec { parallel, replica, launch, .. } = *spec;
        let own = own_ranks(parallel.tensor, launch)?;
        let found = cuda::found()?;
        let devices = assign(&found, parallel, (&own, replica, launch))?;
        let link = match launch {
            None => link(parallel.comm, &devices, &Machine)?,
            Some(_) => link_between_processes(parallel.comm, &Machine)?,
        };
        let others = others(parallel, replica);
        all_there(&found, parallel, &others)?;
        Ok(Self { devices, link, own, ranks: parallel.tensor, others })
    }

    /// Ranks on the device of one of this process's ranks, those of other replicas included.
    pub fn sharing(&self, index: usize) -> usize {
        let own = self.devices[index].ordinal;
        let Neighbours { earlier, later } = self.neighbours(index);
        earlier + later + self.devices.iter().filter(|device| device.ordinal == own).count()
    }

    /// Ranks of other replicas on the device of one of this process's ranks.
    pub fn neighbours(&self, index: usize) -> Neighbours {
        let own = self.devices[index].ordinal;
        let count = |others: &[usize]| others.iter().filter(|other| **other == own).count();
        Neighbours { earlier: count(&self.others[0]), later: count(&self.others[1]) }
    }
}

/// The devices of all ranks of the replicas before one and after it. Processes that were launched
/// together are one replica.
fn others(parallel: &Parallel, replica: usize) -> [Vec<usize>; 2] {
    let devices = |replicas: Range<usize>| {
        let ranks = replicas.start * parallel.tensor..replicas.end * parallel.tensor;
        ranks.map(|rank| parallel.devices.get(rank).copied().unwrap_or(rank)).collect()
    };
    [devices(0..replica), devices(replica + 1..parallel.replicas)]
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
    (own, replica, launch): (&Range<usize>, usize, Option<&Launch>),
) -> Result<Vec<Found>, String> {
    let start = replica * parallel.tensor + own.start;
    let first = match launch {
        None => start,
        Some(launch) => launch.local.unwrap_or(0) * own.len(),
    };
    let device = |index: usize| {
        let configured = parallel.devices.get(start + index).copied();
        let wanted = configured.unwrap_or(first + index);
        let device = found.iter().find(|device| device.ordinal == wanted);
        device.cloned().ok_or_else(|| missing(found, (own.len(), parallel.replicas), wanted))
    };
    (0..own.len()).map(device).collect()
}

/// Whether other replicas have their devices too: all compute on GPUs, or none does.
fn all_there(found: &[Found], parallel: &Parallel, others: &[Vec<usize>; 2]) -> Result<(), String> {
    let is_there = |wanted: &usize| found.iter().any(|device| device.ordinal == *wanted);
    match others.iter().flatten().find(|wanted| !is_there(wanted)) {
        None => Ok(()),
        Some(wanted) => Err(missing(found, (parallel.tensor, parallel.replicas), *wanted)),
    }
}

fn missing(found: &[Found], (ranks, replicas): (usize, usize), wanted: usize) -> String {
    let names = found.iter().map(|device| format!("{} ({})", device.ordinal, device.name));
    let names = names.collect::<Vec<_>>().join(", ");
    let why = format!("there is no device {wanted}: found {names}");
    let repeated = vec![found.first().map_or(0, |device| device.ordinal); ranks * replicas];
    let all_on_one = format!("devices = {repeated:?} puts all ranks on one");
    match (ranks, replicas) {
        (1, 1) => why,
        (ranks, 1) => format!("tensor = {ranks}: {why}; {all_on_one}"),
        _ => format!("tensor = {ranks}, replicas = {replicas}: {why}; {all_on_one}"),
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
            let parallel = parallel(tensor, devices);
            let devices = assign(&found(count), &parallel, (&own, 0, None)).unwrap();
            let others = others(&parallel, 0);
            let gpus = Gpus { devices, link: Link::Peer, own, ranks: tensor, others };
            let ordinals = gpus.devices.iter().map(|device| device.ordinal).collect::<Vec<_>>();
            (ordinals, gpus.sharing(0))
        };
        assert_eq!(ordinals(2, 2, &[]), (vec![0, 1], 1));
        assert_eq!(ordinals(4, 2, &[3, 1]), (vec![3, 1], 1));
        assert_eq!(ordinals(1, 3, &[0, 0, 0]), (vec![0, 0, 0], 3));
    }

    #[test]
    fn replicas_share_devices_in_their_order() {
        let replica = |number: usize, devices: &[usize]| {
            let parallel = Parallel { replicas: 2, ..parallel(2, devices) };
            let own = 0..2;
            let found = assign(&found(6), &parallel, (&own, number, None)).unwrap();
            let others = others(&parallel, number);
            let gpus = Gpus { devices: found, link: Link::Peer, own, ranks: 2, others };
            let ordinals: Vec<_> = gpus.devices.iter().map(|device| device.ordinal).collect();
            (ordinals, gpus.sharing(0), gpus.neighbours(0))
        };
        let none = Neighbours::default();
        assert_eq!(replica(0, &[5, 4, 3, 2]), (vec![5, 4], 1, none));
        assert_eq!(replica(1, &[5, 4, 3, 2]), (vec![3, 2], 1, none));
        assert_eq!([0, 1].map(|number| replica(number, &[]).0), [[0, 1], [2, 3]]);
        // Collectives of both replicas have to fit on the device at once.
        assert_eq!(replica(0, &[0; 4]), (vec![0, 0], 4, Neighbours { earlier: 0, later: 2 }));
        assert_eq!(replica(1, &[0; 4]), (vec![0, 0], 4, Neighbours { earlier: 2, later: 0 }));
    }

    #[test]
    fn a_machine_without_a_gpu_is_told_apart_from_one_whose_gpus_are_not_used() {
        assert!(Lack::Cuda(WhyNot::NoDevice(String::new())).is_plain());
        assert!(!Lack::Cuda(WhyNot::OldDriver { driver: 12, nvrtc: 13 }).is_plain());
        assert!(!Lack::Fit("there is no device 1: found 0 (Card)".to_owned()).is_plain());
    }

    fn launched(process: usize, processes: usize, local: Option<usize>) -> Launch {
        Launch { process, processes, local, leader: "head".to_owned(), port: 1 }
    }

    #[test]
    fn processes_get_their_share_of_ranks_and_count_devices_on_their_host() {
        let ordinals = |launch: &Launch, devices: &[usize]| {
            let parallel = parallel(8, devices);
            let own = own_ranks(8, Some(launch)).unwrap();
            let devices = assign(&found(8), &parallel, (&own, 0, Some(launch))).unwrap();
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
        let why = assign(&found(2), &parallel(4, &[]), (&(0..4), 0, None)).unwrap_err();
        assert!(why.contains("tensor = 4"), "{why}");
        assert!(why.contains("no device 2: found 0 (Card), 1 (Card)"), "{why}");
        assert!(why.contains("devices = [0, 0, 0, 0]"), "{why}");
        let why = assign(&found(1), &parallel(1, &[7]), (&(0..1), 0, None)).unwrap_err();
        assert_eq!(why, "there is no device 7: found 0 (Card)");
        let two = Parallel { replicas: 2, ..parallel(1, &[]) };
        let why = assign(&found(1), &two, (&(0..1), 1, None)).unwrap_err();
        assert!(why.contains("replicas = 2: there is no device 1: found 0 (Card)"), "{why}");
        assert!(why.contains("devices = [0, 0] puts"), "{why}");
        // The first replica has its device, and yet does not go without the second.
        let why = all_there(&found(1), &two, &others(&two, 0)).unwrap_err();
        assert!(why.contains("replicas = 2: there is no device 1"), "{why}");
        assert_eq!(all_there(&found(2), &two, &others(&two, 0)), Ok(()));
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
