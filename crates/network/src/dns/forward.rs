//! Asking the node's name servers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The servers to ask, in order.
#[derive(Clone, Debug)]
pub(super) struct Upstream(Vec<SocketAddr>);

/// The `nameserver` lines of a resolv.conf, without ourselves.
fn parse(text: &str, ourselves: IpAddr) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let rest = line.trim().strip_prefix("nameserver")?;
        let address = rest.split_whitespace().next()?.parse::<IpAddr>().ok()?;
        (address != ourselves).then_some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).take(3).collect()
}

impl Upstream {
    /// The servers of this machine's `/etc/resolv.conf`. Where that is systemd-resolved's stub, it answers
    /// too.
    pub fn of_this_machine(ourselves: IpAddr) -> Self {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self(parse(&text, ourselves))
    }

    /// Asks one after the other, by UDP or TCP as the client did; the answer bears the client's id.
    pub async fn ask(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let id: [u8; 2] = query.get(..2)?.try_into().ok()?;
        let mut query = query.to_vec();
        for server in &self.0 {
            // A fresh id and a fresh port for each try: answers cannot be guessed.
            query[..2].copy_from_slice(&rand::random::<[u8; 2]>());
            let answer = if tcp { by_tcp(*server, &query).await } else { by_udp(*server, &query).await };
            if let Ok(mut answer) = answer {
                answer[..2].copy_from_slice(&id);
                return Some(answer);
            }
        }
        None
    }
}

fn any(server: SocketAddr) -> SocketAddr {
    let unspecified = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { [0; 16].into() };
    SocketAddr::new(unspecified, 0)
}

fn refused() -> std::io::Error {
    std::io::ErrorKind::InvalidData.into()
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(any(server)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    let answer = async {
        loop {
            let length = socket.recv(&mut buffer).await?;
            if length >= 12 && buffer[..2] == query[..2] {
                return Ok::<usize, std::io::Error>(length);
            }
        }
    };
    let length = timeout(PATIENCE, answer).await.map_err(|_| refused())??;
    buffer.truncate(length);
    Ok(buffer)
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let talk = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(query.len()).map_err(|_| refused())?;
        stream.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        if answer.len() < 12 || answer[..2] != query[..2] {
            return Err(refused());
        }
        Ok(answer)
    };
    timeout(PATIENCE, talk).await.map_err(|_| refused())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_come_from_resolv_conf_without_ourselves() {
        let text =
            "# x\nnameserver 1.1.1.1\nsearch a b\n nameserver 10.96.0.10\nnameserver fd00::1 # y\noptions x";
        let servers = parse(text, [10, 96, 0, 10].into());
        assert_eq!(servers, ["1.1.1.1:53".parse().expect("v4"), "[fd00::1]:53".parse().expect("v6")]);
        assert!(parse("", [10, 96, 0, 10].into()).is_empty());
    }
}
