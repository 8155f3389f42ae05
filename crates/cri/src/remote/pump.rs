//! The middle of exec and attach: moves bytes between a session in a container and whatever wire the client
//! speaks, and words the result as a Status.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::service::CriError;
use crate::streaming::{ExecSession, Reader, TerminalSize, Writer};

/// Bytes read at once.
const BLOCK: usize = 32 * 1024;
/// Messages under way in each direction.
pub const WINDOW: usize = 16;

/// From the client. The end of the channel means that the client is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// No more of them.
    StdinClosed,
    /// The client's terminal has another size.
    Resize(TerminalSize),
}

/// To the client.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// From standard output.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
    /// The end: a Status.
    Status(Value),
}

/// The Status of a finished command.
pub fn status_of(result: Result<i32, CriError>) -> Value {
    match result {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(e) => failure(&format!("error executing command in container: {e}")),
    }
}

/// The Status of a failure of the machinery.
pub fn failure(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500,
        "details": {"causes": [{"message": message}]}})
}

/// A terminal size as clients send it: `{"Width":80,"Height":24}`.
pub fn parse_sizes(buffer: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Value>();
    let mut sizes = Vec::new();
    while let Some(Ok(value)) = stream.next() {
        let field = |name: &str| value[name].as_u64().and_then(|n| u16::try_from(n).ok());
        if let (Some(width), Some(height)) = (field("Width"), field("Height")) {
            sizes.push(TerminalSize { width, height });
        }
    }
    let used = stream.byte_offset();
    buffer.drain(..used.min(buffer.len()));
    sizes
}

async fn copy(mut from: Reader, output: mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) {
    let mut block = vec![0; BLOCK];
    while let Ok(n) = from.read(&mut block).await {
        if n == 0 || output.send(wrap(Bytes::copy_from_slice(&block[..n]))).await.is_err() {
            return;
        }
    }
}

async fn feed(
    mut stdin: Option<Writer>,
    resize: mpsc::Sender<TerminalSize>,
    mut input: mpsc::Receiver<Input>,
) {
    while let Some(message) = input.recv().await {
        match message {
            Input::Stdin(bytes) => {
                if let Some(writer) = &mut stdin
                    && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            Input::StdinClosed => {
                if let Some(mut writer) = stdin.take() {
                    let _ = writer.shutdown().await;
                }
            }
            Input::Resize(size) => {
                // The process may have ended meanwhile.
                let _ = resize.send(size).await;
            }
        }
    }
}

/// Runs a session to its end: all output, then the Status. Ends early, dropping the session, when the client
/// is gone.
pub async fn pump(session: ExecSession, input: mpsc::Receiver<Input>, output: mpsc::Sender<Output>) {
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let out = copy(stdout, output.clone(), Output::Stdout);
    let err = async {
        if let Some(stderr) = stderr {
            copy(stderr, output.clone(), Output::Stderr).await;
        }
    };
    let work = async {
        let (_, _, exit) = tokio::join!(out, err, exit);
        exit.unwrap_or_else(|_| Err(CriError::Internal("the session ended without a result".into())))
    };
    tokio::select! {
        result = work => {
            // A client that left does not miss it.
            let _ = output.send(Output::Status(status_of(result))).await;
        }
        () = feed(stdin, resize, input) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_reported_as_causes() {
        assert_eq!(status_of(Ok(0))["status"], "Success");
        let s = status_of(Ok(3));
        assert_eq!((s["reason"].as_str(), s["status"].as_str()), (Some("NonZeroExitCode"), Some("Failure")));
        assert_eq!(s["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }

    #[test]
    fn sizes_are_parsed_across_packets() {
        let mut buffer = b"{\"Width\":80,\"Height\":24}\n{\"Wid".to_vec();
        assert_eq!(parse_sizes(&mut buffer), [TerminalSize { width: 80, height: 24 }]);
        buffer.extend(b"th\":1,\"Height\":2}");
        assert_eq!(parse_sizes(&mut buffer), [TerminalSize { width: 1, height: 2 }]);
    }
}
