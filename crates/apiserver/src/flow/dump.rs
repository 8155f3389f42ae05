//! `/debug/api_priority_and_fairness/dump_priority_levels`, `dump_queues` and `dump_requests`: tables as upstream's.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::FlowControl;
use super::present::Request;

/// Least width of a column, and the space behind its longest cell.
const COLUMN: (usize, usize) = (8, 1);

/// Rows in columns: cells end with a comma, the last excepted.
fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            let width = (cell.len() + 1 + COLUMN.1).max(COLUMN.0);
            match widths.get_mut(i) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            match widths.get(i) {
                Some(width) if i + 1 < row.len() => out.push_str(&format!("{:<width$}", format!("{cell},"))),
                _ => out.push_str(cell),
            }
        }
        out.push('\n');
    }
    out
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A duration below a minute as Go writes it.
fn short(time: Duration) -> String {
    if time.is_zero() { "0s".to_owned() } else { format!("{time:?}") }
}

impl FlowControl {
    /// The table that a path below `/debug/api_priority_and_fairness/` shows.
    /// `details` of requests are shown when they are wanted.
    pub(crate) fn dump(&self, what: &str, details: bool, now: Timestamp) -> Option<String> {
        match what {
            "dump_requests" => Some(self.dump_requests(details, now)),
            "dump_priority_levels" => Some(self.dump_levels()),
            "dump_queues" => Some(self.dump_queues()),
            _ => None,
        }
    }

    fn dump_levels(&self) -> String {
        let mut rows = vec![head(&[
            "PriorityLevelName",
            "ActiveQueues",
            "IsIdle",
            "IsQuiescing",
            "WaitingRequests",
            "ExecutingRequests",
            "DispatchedRequests",
            "RejectedRequests",
            "TimedoutRequests",
            "CancelledRequests",
        ])];
        let configured = self.configured.read().clone();
        for view in &configured.levels {
            let queues = view.level.queues.lock();
            let active = queues.view().1.iter().filter(|queue| queue.waiting > 0).count();
            let ((waiting, running), totals) = (queues.present(), queues.totals());
            rows.push(vec![
                view.level.name.clone(),
                active.to_string(),
                queues.is_idle().to_string(),
                view.leaving.to_string(),
                waiting.to_string(),
                running.to_string(),
                totals.dispatched.to_string(),
                totals.refused.to_string(),
                "0".to_owned(),
                totals.cancelled.to_string(),
            ]);
        }
        rows[1..].sort();
        table(&rows)
    }

    fn dump_queues(&self) -> String {
        let mut rows = vec![head(&[
            "PriorityLevelName",
            "Index",
            "PendingRequests",
            "ExecutingRequests",
            "SeatsInUse",
            "NextDispatchR",
            "InitialSeatsSum",
            "MaxSeatsSum",
            "TotalWorkSum",
        ])];
        let configured = self.configured.read().clone();
        for view in &configured.levels {
            for (i, queue) in view.level.queues.lock().view().1.into_iter().enumerate() {
                rows.push(vec![
                    view.level.name.clone(),
                    i.to_string(),
                    queue.waiting.to_string(),
                    queue.running.to_string(),
                    queue.seats.to_string(),
                    format!("{:.8}ss", queue.next),
                    queue.initial_seats.to_string(),
                    queue.most_seats.to_string(),
                    format!("{:.8}ss", queue.work),
                ]);
            }
        }
        table(&rows)
    }

    fn dump_requests(&self, details: bool, now: Timestamp) -> String {
        let mut names = head(&[
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
            "StartTime",
        ]);
        if details {
            let more =
                ["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"];
            names.extend(head(&more));
        }
        let mut rows = vec![names];
        let configured = self.configured.read().clone();
        for view in &configured.levels {
            let since = view.level.now();
            // The clock of the level says how long ago; people want to know when.
            let date = |at: Duration| now.checked_sub(since.saturating_sub(at)).unwrap_or(now).to_string();
            let present = view.level.present.lock();
            let mut all: Vec<(&Request, i64)> = Vec::with_capacity(present.requests.len());
            let mut places: HashMap<Option<usize>, i64> = HashMap::new();
            for request in present.requests.values() {
                let next = places.entry(request.queue).or_default();
                let place = if request.started.is_some() { -1 } else { *next };
                *next += i64::from(request.started.is_none());
                all.push((request, place));
            }
            // By queue, those who wait first; those of no queue last.
            all.sort_by_key(|(r, place)| (r.queue.is_none(), r.queue, r.started.is_some(), *place));
            for (request, place) in all {
                let [schema, flow] = request.texts.flow();
                let mut row = vec![
                    view.level.name.clone(),
                    schema,
                    request.queue.map_or_else(|| "-1".to_owned(), |at| at.to_string()),
                    place.to_string(),
                    flow,
                    date(request.arrived),
                    request.work.seats.to_string(),
                    request.work.last.to_string(),
                    short(request.work.lingers),
                    request.started.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), date),
                ];
                if details {
                    row.extend(request.texts.details());
                }
                rows.push(row);
            }
        }
        table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["PriorityLevelName", "A", "B"]), row(["x", "1", "22"])]);
        assert_eq!(text, "PriorityLevelName, A,      B\nx,                 1,      22\n");
    }
}
