//! Port forwarding over the channels of a WebSocket, as clients do that do not speak SPDY (Python's, JavaScript's):
//! port n of the request has channel 2n for data and 2n + 1 for the text of a failure. Each channel begins with the
//! port's number, two bytes, the low one first.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::forward::Target;
use super::websocket::Dialect;

/// Sub-protocols; a client may name none.
pub const PROTOCOLS: [&str; 3] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// Messages that may wait.
const WAITING: usize = 64;

/// The ports of a query: `port`, given several times or with commas.
///
/// # Errors
/// There is none, or one is no port; upstream's text.
pub fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut out = Vec::new();
    for given in query.split('&').filter_map(|pair| pair.strip_prefix("port=")) {
        let given = given.replace("%2C", ",").replace("%2c", ",");
        if given.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for port in given.split(',') {
            match port.parse::<u16>() {
                Ok(0) => return Err(format!("port {given:?} must be > 0")),
                Ok(port) => out.push(port),
                Err(_) => return Err(format!("unable to parse {given:?} as a port")),
            }
        }
    }
    if out.is_empty() { Err("query parameter \"port\" is required".to_owned()) } else { Ok(out) }
}

/// Carries all ports until the client leaves, or all connections have ended.
pub(super) async fn serve<S>(socket: WebSocketStream<S>, dialect: Dialect, ports: Vec<u16>, target: Target)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut source) = socket.split();
    let (tell, mut told) = mpsc::channel(WAITING);
    let (mut inputs, mut connections) = (Vec::new(), JoinSet::new());
    for (channel, port) in (0_u8..).step_by(2).zip(ports) {
        let (input, data) = mpsc::channel(WAITING);
        inputs.push(Some(input));
        connections.spawn(connection(target.clone(), port, (dialect, channel), tell.clone(), data));
    }
    drop(tell);
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => return,
                _ => continue,
            };
            let Some(data) = dialect.read(data) else { continue };
            let Some(channel) = data.first().copied().filter(|channel| channel % 2 == 0) else { continue };
            let Some(Some(input)) = inputs.get(usize::from(channel / 2)) else { continue };
            // Fails when that connection has ended.
            let _ = input.send(data.slice(1..)).await;
        }
    };
    let writing = async {
        while let Some(message) = told.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

async fn connection(
    target: Target,
    port: u16,
    (dialect, channel): (Dialect, u8),
    tell: mpsc::Sender<Message>,
    mut data: mpsc::Receiver<Bytes>,
) {
    for begun in [channel, channel + 1] {
        let _ = tell.send(dialect.frame(begun, &port.to_le_bytes())).await;
    }
    let tcp = match target.connect(port).await {
        Ok(tcp) => tcp,
        Err(why) => {
            let _ = tell.send(dialect.frame(channel + 1, why.as_bytes())).await;
            return;
        }
    };
    let (mut from, mut to) = tcp.into_split();
    let down = async {
        let mut block = vec![0; 32 * 1024];
        while let Ok(n @ 1..) = from.read(&mut block).await {
            if tell.send(dialect.frame(channel, &block[..n])).await.is_err() {
                return;
            }
        }
    };
    let up = async {
        while let Some(bytes) = data.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    // There is no way to say that one direction has ended: what the pod closes is closed.
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_several_times_or_with_commas() {
        assert_eq!(ports("port=80&x=1&port=81%2C82"), Ok(vec![80, 81, 82]));
        assert_eq!(ports("x=1"), Err("query parameter \"port\" is required".to_owned()));
        assert_eq!(ports("port="), Err("query parameter \"port\" cannot be empty".to_owned()));
        assert_eq!(ports("port=0"), Err("port \"0\" must be > 0".to_owned()));
        assert!(ports("port=70000").is_err_and(|why| why.starts_with("unable to parse")));
    }
}
