//! Another server of completions, which says a certain text in certain pieces.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

/// Time between two pieces, so that they are not read as one.
const PAUSE: Duration = Duration::from_millis(20);
/// An answer that lasts until the connection is closed.
const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

/// The server. Its thread ends with the program.
pub struct Far(SocketAddr);

impl Far {
    /// A server whose adapter `far-only` says `pieces`.
    pub fn saying(pieces: &'static [&'static str]) -> Far {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || answer(stream, pieces));
            }
        });
        Far(address)
    }

    /// `http://address`
    pub fn url(&self) -> String {
        format!("http://{}", self.0)
    }
}

/// Answers one request; who asked has gone if that fails.
fn answer(mut stream: TcpStream, pieces: &[&str]) -> Option<()> {
    let path = asked(&stream)?;
    match &*path {
        "/v1/completions" => {
            stream.write_all(STREAM.as_bytes()).ok()?;
            let say = |text: &str, finish: Option<&str>| {
                let choice = json!({"index": 0, "text": text, "finish_reason": finish});
                format!("data: {}\n\n", json!({"choices": [choice]}))
            };
            for piece in pieces {
                stream.write_all(say(piece, None).as_bytes()).ok()?;
                std::thread::sleep(PAUSE);
            }
            stream.write_all((say("", Some("stop")) + "data: [DONE]\n\n").as_bytes()).ok()
        }
        "/v1/models" => {
            let base = json!({"id": "far-base", "parent": null});
            let adapter = json!({"id": "far-only", "parent": "far-base"});
            let list = json!({"data": [base, adapter]}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", list.len());
            stream.write_all((head + &list).as_bytes()).ok()
        }
        _ => stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").ok(),
    }
}

/// Reads a request to its end; its path.
fn asked(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut lines = reader.by_ref().lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    let length = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(path)
}
