//! The adapters and replicas of the server.

use crate::bindings::drystone::policy::{adapters, replicas};
use crate::guest::Guest;

impl adapters::Host for Guest {
    fn count(&mut self) -> u32 {
        let count = self.surroundings().map_or(0, |around| around.adapters().len());
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn get(&mut self, index: u32) -> Option<adapters::Adapter> {
        let row = self.surroundings()?.adapters().into_iter().nth(index as usize)?;
        Some(adapters::Adapter { name: row.name, lora_rank: row.lora_rank, resident: row.resident })
    }

    fn exists(&mut self, name: String) -> bool {
        self.surroundings().is_some_and(|around| around.adapter_exists(&name))
    }
}

impl replicas::Host for Guest {
    fn replicas(&mut self) -> Vec<replicas::Replica> {
        let rows = self.surroundings().map(|around| around.replicas()).unwrap_or_default();
        let replica = |row: contract::policy::replica::ReplicaRow| replicas::Replica {
            name: row.name,
            healthy: row.healthy,
            running: row.running,
            waiting: row.waiting,
        };
        rows.into_iter().map(replica).collect()
    }
}
