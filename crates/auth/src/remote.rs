//! Servers elsewhere that are asked who somebody is, or what somebody may.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;

/// Most answers remembered of one server.
const REMEMBERED: usize = 8192;
/// How often a server that fails is asked in all, and the first wait; each further one is half as long again.
const RETRY: (u32, Duration) = (5, Duration::from_millis(500));

/// What a server is sent.
#[derive(Clone, Debug)]
pub enum Exchange<'a> {
    /// A GET; with a bearer token of its own, if one is named.
    Get(Option<&'a str>),
    /// A POST of JSON.
    Post(Vec<u8>),
}

/// A way to ask servers by HTTP. Guarantee: whom it trusts and as whom it asks never changes.
#[async_trait]
pub trait Remote: Send + Sync {
    /// Code and body of the answer. Takes as long as it takes.
    ///
    /// # Errors
    /// Why there is no answer, in the words of Go's HTTP client.
    async fn exchange(&self, url: &str, sent: Exchange<'_>) -> Result<(u16, Vec<u8>), String>;
}

/// Posts a review and reads the reviewed one. A server that cannot be reached or says that it fails is asked again.
///
/// # Errors
/// What the last failure was.
pub(crate) async fn review(
    remote: &dyn Remote,
    url: &str,
    review: &Value,
    timeout: Duration,
) -> Result<Value, String> {
    let (tries, mut wait) = RETRY;
    let mut last = String::new();
    for attempt in 0..tries {
        if attempt > 0 {
            tokio::time::sleep(wait).await;
            wait = wait * 3 / 2;
        }
        let sent = Exchange::Post(review.to_string().into_bytes());
        let asked = tokio::time::timeout(timeout, remote.exchange(url, sent));
        match asked.await {
            Err(_) => last = format!("Post {url:?}: context deadline exceeded"),
            Ok(Err(why)) => last = format!("Post {url:?}: {why}"),
            Ok(Ok((200..300, body))) => {
                let read = serde_json::from_slice(&body);
                return read.map_err(|e| format!("couldn't get version/kind; json parse error: {e}"));
            }
            Ok(Ok((code, body))) => {
                let text = String::from_utf8_lossy(&body).trim().to_owned();
                last = match code {
                    500.. => {
                        format!("an error on the server ({text:?}) has prevented the request from succeeding")
                    }
                    404 => "the server could not find the requested resource".to_owned(),
                    _ => format!("the server responded with the status code {code}"),
                };
                if code < 500 && code != 429 {
                    return Err(last);
                }
            }
        }
    }
    Err(last)
}

/// Answers that are believed for a while.
#[derive(Debug)]
pub(crate) struct Answers<K, V>(Mutex<HashMap<K, (V, Instant)>>);

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Answers<K, V> {
    /// The answer, while it is believed.
    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let answers = self.0.lock();
        let (value, until) = answers.get(key)?;
        (*until > Instant::now()).then(|| value.clone())
    }

    /// Remembers an answer for `ttl`.
    pub(crate) fn put(&self, key: K, value: V, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.0.lock();
        if answers.len() >= REMEMBERED {
            answers.retain(|_, (_, until)| *until > now);
            if answers.len() >= REMEMBERED {
                answers.clear();
            }
        }
        answers.insert(key, (value, now + ttl));
    }
}
