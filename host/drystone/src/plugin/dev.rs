//! `drystone plugin dev`: a server whose plugins are built again when their sources change.

mod sources;

use std::path::{Path, PathBuf};
use std::time::Instant;

use config::components::{Component, components};
use pack::{Built, Options};

use self::sources::Sources;
use crate::Failure;
use crate::cli::PluginDev;
use crate::serve::serve;
use crate::survey::Survey;

/// Builds what it follows, and serves. The host itself loads every component that changes.
pub fn command(options: &PluginDev) -> Result<(), Failure> {
    let projects = projects(options)?;
    if projects.is_empty() {
        println!("no project beside a component; components are loaded again when they change");
    }
    // As they are before the first build, so that no change is missed.
    let sources: Vec<_> = projects.iter().map(|project| Sources::of(&project.folder)).collect();
    projects.iter().for_each(Project::build);
    let mut settings = config::load(&options.config)?;
    settings.policy.watch = true;
    let mut followed = projects.into_iter().zip(sources);
    serve(Survey::of(settings)?, move |_| {
        followed.try_for_each(|(project, sources)| project.follow(sources))
    })
}

/// A crate that builds a component of the deployment.
#[derive(Debug, PartialEq, Eq)]
struct Project {
    folder: PathBuf,
    component: PathBuf,
}

fn projects(options: &PluginDev) -> Result<Vec<Project>, Failure> {
    let components = components(&options.config)?;
    let named = options.projects.iter().map(|folder| Project::named(folder, &components));
    let mut projects = named.collect::<Result<Vec<_>, _>>()?;
    for project in components.iter().filter_map(Project::beside) {
        if projects.iter().all(|known| known.component != project.component) {
            projects.push(project);
        }
    }
    Ok(projects)
}

impl Project {
    /// The project whose own folder the component is in.
    fn beside(component: &Component) -> Option<Self> {
        let folder = component.file.parent().filter(|it| !it.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // Only a manifest is worth asking cargo about.
        let is_project = !component.pinned && folder.join("Cargo.toml").is_file();
        let name = is_project.then(|| pack::name(folder).ok()).flatten()?;
        let project = Self { folder: folder.to_owned(), component: component.file.clone() };
        (component.file.file_name() == Some(file_name(&name).as_ref())).then_some(project)
    }

    /// The project in `folder`, which builds one of `components`.
    fn named(folder: &Path, components: &[Component]) -> Result<Self, Failure> {
        let name = file_name(&pack::name(folder)?);
        let is_it = |it: &&Component| it.file.file_name() == Some(name.as_ref());
        let component = components.iter().find(is_it).ok_or_else(|| {
            let folder = folder.display();
            Failure::Usage(format!(
                "{folder} builds {name}, which is no component of this deployment; a plugin with \
                 source = {{ file = \"{name}\" }} would do"
            ))
        })?;
        if component.pinned {
            let plugin = &component.plugin;
            return Err(Failure::Usage(format!(
                "plugin {plugin:?} is pinned to one build by source.sha256; a deployment without \
                 the pin would do"
            )));
        }
        Ok(Self { folder: folder.to_owned(), component: component.file.clone() })
    }

    /// Builds the component, or says why the old one stays. Cargo has printed what it thinks.
    fn build(&self) {
        let (begun, component) = (Instant::now(), self.component.display());
        match self.put() {
            Ok(built) => println!(
                "{component}: built in {:.1} s, {:.1} KiB, sha256 {}",
                begun.elapsed().as_secs_f64(),
                built.component.len() as f64 / 1024.0,
                built.sha256,
            ),
            Err(error) => println!("{component}: the old one stays: {error}"),
        }
    }

    /// Readers of the component see the old one or the whole new one.
    fn put(&self) -> Result<Built, Failure> {
        let built = pack::build(&self.folder, &Options::default())?;
        let unfinished = self.component.with_extension("new");
        std::fs::write(&unfinished, &built.component)
            .and_then(|()| std::fs::rename(&unfinished, &self.component))
            .map_err(|source| Failure::Write { path: self.component.clone(), source })?;
        Ok(built)
    }

    /// Builds again after every change, in a thread of its own, until the program ends.
    fn follow(self, mut sources: Sources) -> Result<(), Failure> {
        println!("{}: follows {}", self.component.display(), self.folder.display());
        let follow = move || {
            loop {
                sources.wait();
                self.build();
            }
        };
        std::thread::Builder::new().name("plugin-dev".to_owned()).spawn(follow)?;
        Ok(())
    }
}

/// What `drystone plugin build` calls the component of a crate.
fn file_name(name: &str) -> String {
    format!("{name}.wasm")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFFINITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/affinity-router");

    fn component(file: &Path, pinned: bool) -> Component {
        Component { plugin: "a".into(), file: file.into(), pinned }
    }

    #[test]
    fn a_project_beside_its_component_is_found() {
        let file = Path::new(AFFINITY).join("affinity-router.wasm");
        let project = Project { folder: AFFINITY.into(), component: file.clone() };
        assert_eq!(Project::beside(&component(&file, false)), Some(project));
        assert_eq!(Project::beside(&component(&file, true)), None);
        let other = Path::new(AFFINITY).join("other.wasm");
        assert_eq!(Project::beside(&component(&other, false)), None);
    }

    #[test]
    fn a_named_project_builds_a_component_of_the_deployment() {
        let (file, folder) = (Path::new("built/affinity-router.wasm"), Path::new(AFFINITY));
        assert!(Project::named(folder, &[component(file, false)]).is_ok());
        let pinned = Project::named(folder, &[component(file, true)]).unwrap_err();
        assert!(pinned.to_string().contains("source.sha256"), "{pinned}");
        let other = Project::named(folder, &[component(Path::new("a.wasm"), false)]).unwrap_err();
        assert!(other.to_string().contains("file = \"affinity-router.wasm\""), "{other}");
    }
}
