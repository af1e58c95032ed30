//! Whether this process is one of several that a launcher started to run a replica together.
//!
//! Launchers say so in the environment: `torchrun` and its like by `WORLD_SIZE`, `RANK`,
//! `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT`; Slurm's `srun` by `SLURM_NTASKS`, `SLURM_PROCID`
//! and `SLURM_LOCALID` beside a `MASTER_ADDR` that the job exports; Kubernetes' LeaderWorkerSet by
//! `LWS_GROUP_SIZE`, `LWS_WORKER_INDEX` and `LWS_LEADER_ADDRESS`.

/// Where processes meet unless `MASTER_PORT` says otherwise; what PyTorch takes too.
const PORT: u16 = 29500;

/// One process of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This one, from 0; the first one serves.
    pub process: usize,
    /// How many there are; at least two.
    pub processes: usize,
    /// Its place among those on its host, where the launcher starts one for each device.
    pub local: Option<usize>,
    /// Name or address of the first one's host.
    pub leader: String,
    /// Where the first one waits for the others.
    pub port: u16,
}

/// Variables of the environment that do not go together.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LaunchError {
    /// One is missing.
    #[error("the environment has {has} but no {missing}, which a process of several needs")]
    Missing {
        /// What is there.
        has: &'static str,
        /// What is not.
        missing: &'static str,
    },
    /// One is no number, or too large.
    #[error("{name}={value} in the environment: {would_do}")]
    Value {
        /// Which one.
        name: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        would_do: String,
    },
}

/// What the launchers that are known call size, process, place on the host, and leader.
const LAUNCHERS: [[&str; 4]; 3] = [
    ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"],
    ["LWS_GROUP_SIZE", "LWS_WORKER_INDEX", "", "LWS_LEADER_ADDRESS"],
    ["SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "MASTER_ADDR"],
];

/// What the environment says, variable by variable; `None` where this process is alone.
pub fn launch(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>, LaunchError> {
    for [size, process, local, leader] in LAUNCHERS {
        // A shell inside a Slurm allocation has its variables too, but nobody to lead.
        let slurm = size.starts_with("SLURM");
        if variable(size).is_none() || (slurm && variable(leader).is_none()) {
            continue;
        }
        let needed = |name| variable(name).ok_or(LaunchError::Missing { has: size, missing: name });
        let processes = number(size, &needed(size)?, usize::MAX)?;
        if processes < 2 {
            return Ok(None);
        }
        let local = variable(local).map(|text| number(local, &text, processes - 1)).transpose()?;
        return Ok(Some(Launch {
            process: number(process, &needed(process)?, processes - 1)?,
            processes,
            local,
            leader: needed(leader)?,
            port: port(&variable)?,
        }));
    }
    Ok(None)
}

fn port(variable: impl Fn(&str) -> Option<String>) -> Result<u16, LaunchError> {
    let name = "MASTER_PORT";
    let text = variable(name).unwrap_or_else(|| PORT.to_string());
    let port = number(name, &text, usize::from(u16::MAX) - 1)?;
    // Where torchrun keeps its own store at that port, ours is the next.
    let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
    Ok(u16::try_from(port + usize::from(taken)).unwrap_or(PORT))
}

fn number(name: &'static str, text: &str, most: usize) -> Result<usize, LaunchError> {
    let number = text.parse().ok().filter(|number| *number <= most);
    number.ok_or_else(|| LaunchError::Value {
        name,
        value: text.to_owned(),
        would_do: match most {
            usize::MAX => "a number would do".to_owned(),
            _ => format!("0 to {most} would do"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &str) -> Result<Option<Launch>, LaunchError> {
        let pairs: Vec<_> =
            environment.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
        launch(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn leader(process: usize, processes: usize, local: Option<usize>, port: u16) -> Launch {
        Launch { process, processes, local, leader: "head".to_owned(), port }
    }

    #[test]
    fn every_launcher_is_understood() {
        let torchrun = "WORLD_SIZE=8 RANK=5 LOCAL_RANK=1 MASTER_ADDR=head MASTER_PORT=1234";
        assert_eq!(of(torchrun), Ok(Some(leader(5, 8, Some(1), 1234))));
        let agent = format!("{torchrun} TORCHELASTIC_USE_AGENT_STORE=True");
        assert_eq!(of(&agent), Ok(Some(leader(5, 8, Some(1), 1235))));
        let slurm = "SLURM_NTASKS=2 SLURM_PROCID=1 SLURM_LOCALID=0 MASTER_ADDR=head";
        assert_eq!(of(slurm), Ok(Some(leader(1, 2, Some(0), PORT))));
        let lws = "LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=0 LWS_LEADER_ADDRESS=head";
        assert_eq!(of(lws), Ok(Some(leader(0, 2, None, PORT))));
    }

    #[test]
    fn a_process_alone_is_none_of_several() {
        for environment in ["", "WORLD_SIZE=1 RANK=0", "SLURM_NTASKS=4 SLURM_PROCID=0"] {
            assert_eq!(of(environment), Ok(None), "{environment}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let says = |environment, part: &str| {
            let why = of(environment).unwrap_err().to_string();
            assert!(why.contains(part), "{why:?} does not say {part:?}");
        };
        says("WORLD_SIZE=2 MASTER_ADDR=head", "WORLD_SIZE but no RANK");
        says("WORLD_SIZE=2 RANK=0", "no MASTER_ADDR");
        says("WORLD_SIZE=two RANK=0 MASTER_ADDR=head", "WORLD_SIZE=two");
        says("WORLD_SIZE=2 RANK=2 MASTER_ADDR=head", "RANK=2 in the environment: 0 to 1");
        says("WORLD_SIZE=2 RANK=0 MASTER_ADDR=head MASTER_PORT=99999", "MASTER_PORT=99999");
    }
}
