//! `coracle demo`: a small HTTP server and client, so that a first pod needs no registry: the image
//! `coracle.local/self` is made of this binary.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::cli::DemoCommand;
use crate::error::Failure;

/// Runs a demonstration command to its end.
///
/// # Errors
/// A port in use; a URL that cannot be fetched or answered with an error.
pub fn run(command: DemoCommand) -> Result<(), Failure> {
    match command {
        DemoCommand::Serve { port } => serve(port),
        DemoCommand::Get { url } => get(&url),
        DemoCommand::Tick => tick(),
    }
}

fn serve(port: u16) -> Result<(), Failure> {
    // As PID 1 of a container, SIGTERM has no default action: end on it.
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::Signal::SIGTERM);
    signals.add(nix::sys::signal::Signal::SIGINT);
    let _ = signals.thread_block();
    std::thread::spawn(move || {
        let _ = signals.wait();
        std::process::exit(0);
    });
    let listener = TcpListener::bind(("0.0.0.0", port))
        .map_err(|e| Failure::new(format!("cannot listen on port {port}: {e}"), "choose another --port"))?;
    println!("listening on :{port}");
    let name = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()));
    let name = name.unwrap_or_default();
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        std::thread::spawn(move || {
            let _ = answer(stream, &name);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut head = Vec::new();
    let mut buffer = [0u8; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 16 * 1024 {
        match stream.read(&mut buffer)? {
            0 => break,
            n => head.extend_from_slice(&buffer[..n]),
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split_whitespace().nth(1).unwrap_or("/");
    println!("{path}");
    let body = format!("Hello from {name}, you asked for {path}\n");
    let header = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    write!(stream, "{header}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn get(url: &str) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(format!("{url}: {e}"), "");
    let rest = url.strip_prefix("http://").ok_or_else(|| fail(&"only http:// is understood"))?;
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p));
    let target = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let mut stream = TcpStream::connect(&target).map_err(|e| fail(&e))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|e| fail(&e))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {authority}\r\n\r\n").map_err(|e| fail(&e))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| fail(&e))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| fail(&"not an HTTP answer"))?;
    print!("{body}");
    match head.split_whitespace().nth(1) {
        Some(code) if code.starts_with('2') => Ok(()),
        code => Err(fail(&format!("status {}", code.unwrap_or("missing")))),
    }
}

fn tick() -> Result<(), Failure> {
    for n in 1_u64.. {
        println!("tick {n}");
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
