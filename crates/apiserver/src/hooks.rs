//! Calls of webhooks: one HTTPS request, with the authorities and the name that the configuration says.

use std::time::Duration;

use coracle_admission::{CallError, HookTarget};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{HeaderValue, Method};

use crate::outbound::{Question, Trust, ask, service_address};
use crate::server::Server;

/// Largest answer that is read.
const MAX_ANSWER: usize = 64 << 20;

/// Posts `body` and returns the answer's body.
///
/// # Errors
/// Why that failed, in the words of Go's HTTP client.
pub(crate) async fn post(
    server: &Server,
    target: &HookTarget,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, CallError> {
    let url = with_timeout(&target.url, timeout);
    let failed = |why: String| CallError::unavailable(format!("Post {url:?}: {why}"));
    match tokio::time::timeout(timeout, exchange(server, target, &url, body)).await {
        Err(_) => Err(failed("context deadline exceeded".to_owned())),
        Ok(Err(Failure::Transport(why))) => Err(failed(why)),
        Ok(Err(Failure::Answer(code, why))) => Err(CallError { why, code }),
        Ok(Err(Failure::Unusable(why))) => Err(CallError::unavailable(why)),
        Ok(Ok(answer)) => Ok(answer),
    }
}

enum Failure {
    /// No answer.
    Transport(String),
    /// An answer that is none, with its code.
    Answer(u16, String),
    /// What the configuration says cannot be used.
    Unusable(String),
}

/// The URL with the parameter that tells the webhook how long it may take.
fn with_timeout(url: &str, timeout: Duration) -> String {
    let sign = if url.contains('?') { '&' } else { '?' };
    format!("{url}{sign}timeout={}s", timeout.as_secs())
}

async fn exchange(
    server: &Server,
    target: &HookTarget,
    url: &str,
    body: Vec<u8>,
) -> Result<Vec<u8>, Failure> {
    let at = match &target.service {
        None => None,
        Some((namespace, name, port)) => {
            let found = service_address(server, namespace, name, *port);
            Some(found.map_err(|why| Failure::Transport(why.message().to_owned()))?)
        }
    };
    let trust = Trust { ca: target.ca_bundle.as_deref(), ..Trust::default() };
    let tls = trust.config().map_err(Failure::Unusable)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
    headers.insert(USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"));
    let question = Question {
        method: Method::POST,
        url,
        at,
        name: None,
        tls,
        headers,
        body: body.into(),
        most: MAX_ANSWER,
    };
    let reply = ask(question).await.map_err(Failure::Transport)?;
    match reply.code {
        200..300 => Ok(reply.body.to_vec()),
        code => Err(Failure::Answer(code, refusal(code, &reply.body))),
    }
}

/// A code that is no success, in the words of client-go.
fn refusal(code: u16, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    match code {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => "forbidden".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_is_told_how_long_it_may_take() {
        assert_eq!(
            with_timeout("https://a.b.svc:443/v", Duration::from_secs(5)),
            "https://a.b.svc:443/v?timeout=5s"
        );
        assert_eq!(with_timeout("https://h/?a=1", Duration::from_secs(1)), "https://h/?a=1&timeout=1s");
    }

    #[test]
    fn refusals_are_told_as_client_go_does() {
        let want = "an error on the server (\"oops\") has prevented the request from succeeding";
        assert_eq!(refusal(500, b"oops\n"), want);
        assert_eq!(refusal(404, b""), "the server could not find the requested resource");
    }
}
