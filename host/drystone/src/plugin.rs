//! `drystone plugin`: what authors of plugins do with them.

mod build;
mod new;

use crate::Failure;
use crate::cli::Plugin;

pub fn command(what: &Plugin) -> Result<(), Failure> {
    match what {
        Plugin::New(new) => new::command(new),
        Plugin::Build(build) => build::command(build),
    }
}
