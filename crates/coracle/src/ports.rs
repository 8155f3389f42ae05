//! Who holds a TCP port: for the message when it is not free.

use std::collections::HashSet;
use std::fs;

/// The state of a listening socket in the kernel's tables.
const LISTEN: &str = "0A";

/// The program that listens on a port in this network namespace, e.g. `nginx (pid 12)`; `None` when it cannot
/// be found out.
pub fn holder(port: u16) -> Option<String> {
    let tables =
        ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(|p| fs::read_to_string(p).unwrap_or_default());
    let sockets: HashSet<String> = tables.iter().flat_map(|t| listening(t, port)).collect();
    if sockets.is_empty() {
        return None;
    }
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let mut fds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = fds.any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| sockets.contains(to.to_string_lossy().as_ref()))
        });
        if holds {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", comm.trim()));
        }
    }
    None
}

/// The listening sockets of a port in one of the kernel's tables, as file descriptors name them.
fn listening(table: &str, port: u16) -> Vec<String> {
    let end = format!(":{port:04X}");
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            (local.ends_with(&end) && *state == LISTEN).then(|| format!("socket:[{inode}]"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_listener_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = holder(port).unwrap();
        assert!(found.ends_with(&format!("(pid {})", std::process::id())), "{found}");
        drop(listener);
        assert_eq!(holder(port), None);
    }
}
