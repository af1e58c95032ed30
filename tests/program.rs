//! The drystone program as a user runs it: built once, started on a free port, ended on drop.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than any start or answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The program, built if it is not up to date: cargo builds no binaries for another crate's tests.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "drystone"]).current_dir(root());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "drystone does not build");
        // target/debug/deps/all-... -> target/debug/drystone
        let test = std::env::current_exe().unwrap();
        test.parent().unwrap().parent().unwrap().join("drystone")
    })
}

/// `configs/demo.toml` as it would be in any other folder.
pub fn demo_deployment() -> String {
    let text = std::fs::read_to_string(root().join("configs/demo.toml")).unwrap();
    let at = |folder: &str| root().join(folder).display().to_string();
    text.replace("../tests", &at("tests")).replace("../plugins", &at("plugins"))
}

/// The same without its plugins, on a free port.
pub fn without_plugins() -> String {
    let demo = demo_deployment().replace("127.0.0.1:8080", "127.0.0.1:0");
    let (deployment, _) = demo.split_once("# Three policies").unwrap();
    deployment.to_owned()
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The program with these arguments. Whatever it builds shares one folder, so that the second
/// project does not compile the SDK once more.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).current_dir(root()).env("CARGO_TARGET_DIR", root().join("target"));
    command
}

/// What a server has written so far, on both of its outputs.
type Log = Arc<Mutex<String>>;

/// A running server.
pub struct Server {
    child: Child,
    address: SocketAddr,
    log: Log,
    /// Kept while the server may read it.
    _folder: Option<TempDir>,
}

impl Server {
    /// The only key of [`Server::with_keys`].
    pub const KEY: &str = "sk-test-0123456789abcdef";

    /// Serves the demo's deployment to callers with a key.
    pub fn with_keys() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let keys = format!("[[key]]\ntenant = \"test\"\nkey = \"{}\"\n", Server::KEY);
        std::fs::write(folder.path().join("keys.toml"), keys).unwrap();
        Server::deploy(folder, "api_keys_file = \"keys.toml\"", str::to_owned)
    }

    /// Serves the demo's deployment, whose file is in `folder`, with a further line in `[server]`
    /// and after a `change`.
    pub fn deploy(folder: TempDir, line: &str, change: impl Fn(&str) -> String) -> Server {
        let listen = format!("listen = \"127.0.0.1:0\"\n{line}");
        let text = demo_deployment().replace("listen = \"127.0.0.1:8080\"", &listen);
        let file = folder.path().join("deployment.toml");
        std::fs::write(&file, change(&text)).unwrap();
        let mut server = Server::start(&["serve", "-c", file.to_str().unwrap()]);
        server._folder = Some(folder);
        server
    }

    /// Starts `drystone` with these arguments and waits until it is ready.
    pub fn start(arguments: &[&str]) -> Server {
        let mut child = command(arguments)
            .env("RUST_LOG", "info")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::default();
        let address = address(&mut child, &log);
        let server = Server { child, address, log, _folder: None };
        let begun = Instant::now();
        while server.get("/ready").0 != 200 {
            assert!(begun.elapsed() < PATIENCE, "never ready");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Starts the demo's model with `tensor` ranks on a free port.
    pub fn demo(tensor: usize) -> Server {
        Server::start(&["demo", "--listen", "127.0.0.1:0", "--tensor", &tensor.to_string()])
    }

    /// `http://address`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Status and body of a GET.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("{}{path}", self.url())).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Status and JSON of a POST.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = agent().post(format!("{}{path}", self.url())).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// Status and JSON of a POST with a key.
    pub fn post_as(&self, key: &str, path: &str, body: &Value) -> (u16, Value) {
        let post = agent().post(format!("{}{path}", self.url()));
        let post = post.header("authorization", format!("Bearer {key}"));
        let mut response = post.send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// Status and all events of a POST whose answer is streamed, but for the last, `[DONE]`.
    pub fn stream(&self, path: &str, body: &Value) -> (u16, Vec<Value>) {
        let mut response = agent().post(format!("{}{path}", self.url())).send_json(body).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        let mut events: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(events.pop(), Some("[DONE]"), "{text}");
        let events = events.into_iter().map(|event| serde_json::from_str(event).unwrap());
        (response.status().as_u16(), events.collect())
    }

    /// Status and body of a GET with the server's key.
    pub fn get_with_key(&self, path: &str) -> (u16, String) {
        let get = agent().get(format!("{}{path}", self.url()));
        let key = format!("Bearer {}", Server::KEY);
        let mut response = get.header("authorization", key).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Status and body of a POST of a component with the server's key.
    pub fn call(&self, path: &str, component: &[u8]) -> (u16, String) {
        let post = agent().post(format!("{}{path}", self.url()));
        let post = post.header("authorization", format!("Bearer {}", Server::KEY));
        let mut response = post.header("content-type", "application/wasm").send(component).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// A counter or gauge of `/metrics`, by its name with labels.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).trim().parse().unwrap()
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has written `text`.
    pub fn until_log(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(begun.elapsed() < PATIENCE, "never {text:?} in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "never ended");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder();
    config.http_status_as_error(false).timeout_global(Some(PATIENCE)).build().new_agent()
}

/// Keeps the log from now on, and waits for the line that tells the address.
fn address(child: &mut Child, log: &Log) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    keep(child.stdout.take().unwrap(), log, |_| {});
    keep(child.stderr.take().unwrap(), log, move |line| {
        if let Some((_, address)) = line.split_once("listening on http://") {
            let _ = tell.send(address.trim().parse().unwrap());
        }
    });
    let address = told.recv_timeout(PATIENCE);
    address.unwrap_or_else(|_| panic!("it never told its address:\n{}", log.lock().unwrap()))
}

/// Adds every line of `output` to `log`, in a thread of its own.
fn keep(
    output: impl Read + Send + 'static,
    log: &Log,
    mut seen: impl FnMut(&str) + Send + 'static,
) {
    let log = log.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            *log.lock().unwrap() += &format!("{line}\n");
            seen(&line);
        }
    });
}
