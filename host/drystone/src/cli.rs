//! The command line; its doc comments are the manual.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Serves one base model and many LoRA and BD-LoRA adapters, tensor-parallel, over an
/// OpenAI-compatible HTTP API.
#[derive(Debug, Parser)]
#[command(name = "drystone", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// How log lines look on standard error. What is logged is up to RUST_LOG (default: info).
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves a deployment until SIGTERM or Ctrl-C; running requests then get `server.drain_s`.
    Serve {
        /// TOML file of the deployment; see configs/.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Checks a deployment, its model and its adapters without loading any weights.
    Check {
        /// TOML file of the deployment.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Serves a small model that is part of this program, asks it a few questions, and goes on
    /// serving.
    Demo(Demo),
    /// Makes, looks at and tests policy plugins.
    Plugin {
        /// What to do.
        #[command(subcommand)]
        what: Plugin,
    },
    /// Measures.
    Bench {
        /// What to measure.
        #[command(subcommand)]
        what: Bench,
    },
}

/// How the demo runs.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Stop after the first questions.
    #[arg(long)]
    pub once: bool,
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Tensor-parallel ranks: 1, 2, 4 or 8.
    #[arg(long, value_name = "RANKS", default_value_t = 2)]
    pub tensor: usize,
    /// What computes; a GPU runs one rank.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// A GPU where one is found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Tokens per second of prefill and decode without HTTP, on random weights, beside the floor
    /// that memory bandwidth sets.
    Offline(Offline),
    /// Microseconds of policy calls as a server makes them, for the components that are given.
    Policy(PolicyBench),
}

/// What to do with plugins.
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// Writes a project with one hook, its tests and a case file; it builds and tests at once.
    New(PluginNew),
    /// Builds a project into a component and prints its size, its hooks, what it asks of the server
    /// and its SHA-256. Wants Rust from rustup, and installs the target wasm32-unknown-unknown.
    Build(PluginBuild),
    /// Says what a component is: its hooks, what it must be allowed, its configuration.
    Inspect {
        /// The component.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Asks a component test cases, in the host that servers run it in, and counts instructions and
    /// memory. Fails on an unexpected verdict and on a case over its budget.
    ///
    /// A file of cases is TOML: `allow` and `config` as in a deployment, and a `[[case]]` each with
    /// `name`, `hook`, the verdict to `expect`, and the parts of its input that matter: `request`,
    /// `headers`, `messages`, `caller`, `load`, `demand`, `replicas`, `chunk`, `response` or
    /// `completion`. Names are those of the WIT files. A case may have its own `config`, and a
    /// `budget` of `fuel` and `memory_kib`. An expected table needs to name only what matters; a
    /// guest that fails answers `{ failure = "timeout" }`.
    Test {
        /// The component.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A file of cases, or a folder of them (*.toml).
        #[arg(long, value_name = "PATH")]
        cases: PathBuf,
    },
    /// Asks two components what a server recorded, and prints the verdicts that differ.
    Replay(Replay),
    /// Serves a deployment, and builds a plugin again whenever one of its sources changes. What
    /// does not compile or cannot be used leaves the old component at work.
    ///
    /// A project is followed that builds NAME.wasm where the deployment has it, which is what
    /// `drystone plugin build` does; projects elsewhere are named. Components that other tools
    /// build are loaded again when they change, as `drystone serve` does.
    Dev(PluginDev),
}

/// Where to write a new project.
#[derive(Debug, clap::Args)]
pub struct PluginNew {
    /// Folder to make; its last part is the plugin's name.
    #[arg(value_name = "NAME")]
    pub folder: PathBuf,
    /// Folder of drystone-sdk [default: `sdk` of the Drystone checkout that NAME is in].
    #[arg(long, value_name = "PATH")]
    pub sdk: Option<PathBuf>,
}

/// What to build.
#[derive(Debug, clap::Args)]
pub struct PluginBuild {
    /// Folder of the project.
    #[arg(value_name = "DIR", default_value = ".")]
    pub folder: PathBuf,
    /// Where the component goes [default: NAME.wasm in DIR].
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// What to serve and which sources to follow.
#[derive(Debug, clap::Args)]
pub struct PluginDev {
    /// TOML file of the deployment.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Folders of further projects; each builds the component that the deployment has under the
    /// name of its crate.
    #[arg(value_name = "PROJECT")]
    pub projects: Vec<PathBuf>,
}

/// What to ask again, and whom.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// What a plugin's `record` wrote.
    #[arg(value_name = "FILE")]
    pub recording: PathBuf,
    /// A component, or `builtin` for what the server decides without plugins.
    #[arg(long, value_name = "FILE")]
    pub old: PathBuf,
    /// The component to compare with it.
    #[arg(long, value_name = "FILE")]
    pub new: PathBuf,
    /// TOML file with `allow` and `config` for both; a file of cases will do.
    #[arg(long, value_name = "FILE")]
    pub setup: Option<PathBuf>,
    /// Differences to print; all are counted.
    #[arg(long, default_value_t = 20)]
    pub show: usize,
}

/// Components to measure. They are granted everything and get an empty configuration.
#[derive(Debug, clap::Args)]
pub struct PolicyBench {
    /// Answers score-replicas; asked about 16 candidates.
    #[arg(long, value_name = "FILE")]
    pub score: Option<PathBuf>,
    /// Answers on-request; also measured as a chain of ten, and when its file changes.
    #[arg(long, value_name = "FILE")]
    pub request: Option<PathBuf>,
    /// Answers on-chunk.
    #[arg(long, value_name = "FILE")]
    pub chunk: Option<PathBuf>,
    /// Never answers on-request for the model `spin`, and is killed after 5 ms. Requests for
    /// another model are measured beside it.
    #[arg(long, value_name = "FILE")]
    pub spin: Option<PathBuf>,
    /// Answers on-request a million times and is reloaded a thousand times, to see what stays in
    /// memory.
    #[arg(long, value_name = "FILE")]
    pub endurance: Option<PathBuf>,
    /// Calls of one row.
    #[arg(long, default_value_t = 2000)]
    pub calls: usize,
    /// Print JSON rows instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `bench offline` runs.
#[derive(Debug, clap::Args)]
pub struct Offline {
    /// Shape of the model.
    #[arg(long, value_enum, default_value_t = Shape::Llama1b)]
    pub shape: Shape,
    /// What computes.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    pub backend: Backend,
    /// Tensor-parallel ranks [default: 2 on the CPU, 1 on a GPU].
    #[arg(long)]
    pub tensor: Option<usize>,
    /// Threads of one rank [default: the machine's cores shared among the ranks].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Element type of the weights.
    #[arg(long, default_value = "bf16")]
    pub dtype: String,
    /// Sequences in a decode batch, one run each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    pub batch: Vec<usize>,
    /// Prompt tokens of the prefill run.
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    /// Prompts of the prefill run, all in one step.
    #[arg(long, default_value_t = 1)]
    pub prompts: usize,
    /// Decode steps of a run.
    #[arg(long, default_value_t = 24)]
    pub steps: usize,
    /// Kinds of adapters to run beside the base, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Lora::Plain, Lora::Bd])]
    pub lora: Vec<Lora>,
    /// Lora rank of the adapters.
    #[arg(long, default_value_t = 16)]
    pub lora_rank: usize,
    /// Different adapters at most; up to that many, every sequence of a batch has its own
    /// [default: as many as the largest batch].
    #[arg(long)]
    pub adapters: Option<usize>,
    /// Print JSON rows instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Kinds of adapters to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lora {
    /// None: the base alone.
    Off,
    /// Plain LoRA, replicated.
    Plain,
    /// BD-LoRA with as many blocks as the model has ranks.
    Bd,
}

/// Model shapes to measure.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shape {
    /// TinyLlama's: 1.1 billion parameters, 22 layers.
    #[value(name = "1.1b")]
    Llama1b,
    /// 100 million parameters, 12 layers.
    #[value(name = "100m")]
    Llama100m,
    /// Llama-3.1-8B's: 8 billion parameters, 32 layers.
    #[value(name = "8b")]
    Llama8b,
    /// What one of 8 ranks holds of Llama-3.1-70B, 80 layers, without its peers.
    #[value(name = "70b-tp8")]
    Llama70bTp8,
}
