//! `/debug/api_priority_and_fairness/dump_priority_levels` and `dump_queues`: tables as upstream prints them.

use super::FlowControl;

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

impl FlowControl {
    /// The table that a path below `/debug/api_priority_and_fairness/` shows.
    pub(crate) fn dump(&self, what: &str) -> Option<String> {
        match what {
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
