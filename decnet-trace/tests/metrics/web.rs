//! A web server that answers whatever it is sent with one status.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// It listens until the test ends.
pub(super) struct Web {
    pub(super) address: SocketAddr,
    /// Bytes of the bodies that were sent to `/v1/traces`.
    pub(super) spans: Arc<AtomicU64>,
}

impl Web {
    pub(super) fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self {
            address: listener.local_addr().unwrap(),
            spans: Arc::default(),
        };
        let spans = Arc::clone(&web.spans);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let spans = Arc::clone(&spans);
                thread::spawn(move || serve(stream.unwrap(), status, &spans));
            }
        });
        web
    }
}

/// Until the client has had enough.
fn serve(mut stream: TcpStream, status: &str, spans: &AtomicU64) {
    let mut bytes = Vec::new();
    let mut room = [0; 64 * 1024];
    loop {
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(head) = head.map(|at| at + 4) {
            let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.unwrap().trim().parse().unwrap();
            if bytes.len() >= head + length {
                if text.starts_with("post /v1/traces ") {
                    spans.fetch_add(length as u64, Ordering::Relaxed);
                }
                bytes.drain(..head + length);
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
                continue;
            }
        }
        match stream.read(&mut room) {
            Ok(n @ 1..) => bytes.extend_from_slice(&room[..n]),
            _ => return,
        }
    }
}
