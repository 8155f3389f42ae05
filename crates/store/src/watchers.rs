//! Open watches: who gets which events of a commit.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use crate::Event;

/// The open watches of a store. A watch whose receiver is gone is dropped at the next publication.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Vec<(String, UnboundedSender<Arc<[Event]>>)>);

impl Watchers {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, prefix: &str, sender: UnboundedSender<Arc<[Event]>>) {
        self.0.retain(|(_, open)| !open.is_closed());
        self.0.push((prefix.to_owned(), sender));
    }

    /// Sends whole transactions to every watch, each the events below its prefix. Watches that want all of
    /// them share one allocation.
    pub(crate) fn publish(&mut self, events: Vec<Event>) {
        if events.is_empty() || self.0.is_empty() {
            return;
        }
        let all: Arc<[Event]> = events.into();
        self.0.retain(|(prefix, sender)| match below(&all, prefix) {
            None => !sender.is_closed(),
            Some(batch) => sender.send(batch).is_ok(),
        });
    }
}

/// The events below `prefix`; `None` when there are none.
pub(crate) fn below(all: &Arc<[Event]>, prefix: &str) -> Option<Arc<[Event]>> {
    let wanted = all.iter().filter(|e| e.key.starts_with(prefix)).count();
    if wanted == 0 {
        return None;
    }
    if wanted == all.len() {
        return Some(all.clone());
    }
    Some(all.iter().filter(|e| e.key.starts_with(prefix)).cloned().collect())
}
