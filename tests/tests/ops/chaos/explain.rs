//! Which failed requests a fault explains: pure.

use std::time::Duration;

use super::schedule::Fault;

/// Answers in a row after which a fault is over for a stream.
const IN_A_ROW: usize = 3;

/// Whose requests, and of what kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stream {
    /// The host's own client.
    pub is_host: bool,
    /// Over IPv6.
    pub is_v6: bool,
    /// On a connection that is kept.
    pub is_held: bool,
}

/// A request, in time since the start of the load.
#[derive(Clone, Debug)]
pub struct Request {
    pub stream: Stream,
    /// When it was sent; on a connection that is kept, when the last one before was answered.
    pub begin: Duration,
    pub end: Duration,
    /// The number of the backend that has answered, or that the connection leads to.
    pub backend: Option<usize>,
    /// Why it has failed.
    pub error: Option<String>,
}

/// A fault as it was.
#[derive(Clone, Debug)]
pub struct Window {
    pub fault: Fault,
    pub begin: Duration,
    /// When it was undone, as far as whoever made it could see.
    pub undone: Option<Duration>,
    /// When the server of a container that stops took no more connections.
    pub stopped: Option<Duration>,
    /// It was the programs for the host's own clients that were taken off.
    pub is_local: bool,
}

impl Window {
    /// Whether such a request may fail while this lasts. What is in no line explains nothing: programs that are pinned
    /// work on without samport, and samport keeps the last good state of whatever it cannot ask.
    fn explains(&self, request: &Request) -> bool {
        let Request { stream, backend, .. } = *request;
        let is_of = |number: usize| backend.is_none_or(|backend| backend == number);
        match self.fault {
            // The kernel takes its IPv6 address away with the link, the host's own route with it.
            Fault::Front => !stream.is_host || stream.is_v6,
            // An open connection sends again what was lost; whatever samport does meanwhile, its backend keeps its way.
            Fault::Veth(number) => is_of(number) && !stream.is_held,
            // A new connection that is refused is tried with another backend, but not the host's own: that is the
            // host's own socket. What was sent while the server still was there may have been cut off.
            Fault::Container(number) => {
                let is_cut_off = self.stopped.is_none_or(|at| request.begin <= at);
                is_of(number) && (stream.is_held || stream.is_host || is_cut_off)
            }
            Fault::TakenOff(_) => stream.is_host || !self.is_local,
            Fault::Kill
            | Fault::Freeze
            | Fault::Engine(_)
            | Fault::Routes
            | Fault::Address
            | Fault::Config(_)
            | Fault::DiskFull => false,
        }
    }

    /// When it was over for new connections of a stream: several in a row that were begun after it was undone have
    /// been answered, by the backend that it was about.
    fn over(&self, stream: Stream, requests: &[Request]) -> Option<Duration> {
        let undone = self.undone?;
        let about = match self.fault {
            Fault::Veth(number) | Fault::Container(number) => Some(number),
            _ => None,
        };
        let mut row = 0;
        let later = requests.iter().filter(|one| {
            let is_same = (one.stream.is_host, one.stream.is_v6) == (stream.is_host, stream.is_v6);
            is_same && !one.stream.is_held && one.begin >= undone
        });
        for one in later {
            match (&one.error, about) {
                (Some(_), _) => row = 0,
                (None, Some(number)) if one.backend != Some(number) => {}
                (None, _) => row += 1,
            }
            if row == IN_A_ROW {
                return Some(one.end);
            }
        }
        None
    }
}

/// The failures that no fault explains. The requests of a stream are in their order.
pub fn unexplained<'a>(requests: &'a [Request], windows: &[Window]) -> Vec<&'a Request> {
    // Once for each kind of client: there are very many requests.
    let kinds = [(false, false), (false, true), (true, false), (true, true)];
    let ends_of = |window: &Window| {
        kinds.map(|(is_host, is_v6)| {
            window.over(Stream { is_host, is_v6, is_held: false }, requests)
        })
    };
    let windows: Vec<_> = windows.iter().map(|window| (window, ends_of(window))).collect();
    let is_explained = |request: &Request| {
        let of = (request.stream.is_host, request.stream.is_v6);
        let kind = kinds.iter().position(|kind| *kind == of).unwrap_or_default();
        windows.iter().any(|(window, ends)| {
            window.explains(request)
                && window.begin <= request.end
                && ends[kind].is_none_or(|over| request.begin <= over)
        })
    };
    requests.iter().filter(|one| one.error.is_some() && !is_explained(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Stream = Stream { is_host: false, is_v6: false, is_held: false };

    fn at(begin: u64, backend: Option<usize>, is_good: bool) -> Request {
        let [begin, end] = [begin, begin + 1].map(Duration::from_secs);
        let error = (!is_good).then(|| "refused".to_owned());
        Request { stream: NEW, begin, end, backend, error }
    }

    fn of(fault: Fault) -> Window {
        let [begin, undone] = [10, 20].map(Duration::from_secs);
        Window { fault, begin, undone: Some(undone), stopped: None, is_local: false }
    }

    fn good(from: u64) -> Vec<Request> {
        (from..from + 5).map(|second| at(second, Some(0), true)).collect()
    }

    #[test]
    fn a_failure_needs_a_fault_at_its_time() {
        let mut requests = vec![at(2, None, false), at(15, None, false), at(21, None, false)];
        requests.extend(good(22));
        requests.push(at(40, None, false));
        let left: Vec<_> = unexplained(&requests, &[of(Fault::Front)])
            .iter()
            .map(|one| one.begin.as_secs())
            .collect();
        // The one right after its end belongs to it, as nothing had been answered again.
        assert_eq!(left, [2, 40]);
    }

    #[test]
    fn what_promises_not_to_disturb_explains_nothing() {
        let mut requests = vec![at(15, None, false)];
        requests.extend(good(22));
        for fault in [Fault::Kill, Fault::Freeze, Fault::DiskFull, Fault::Routes] {
            assert_eq!(unexplained(&requests, &[of(fault)]).len(), 1, "{fault:?}");
        }
        assert!(unexplained(&requests, &[of(Fault::TakenOff(1))]).is_empty());
        let local = Window { is_local: true, ..of(Fault::TakenOff(1)) };
        assert_eq!(unexplained(&requests, &[local]).len(), 1);
    }

    #[test]
    fn one_backends_fault_explains_no_failure_of_another() {
        let mut requests = vec![at(15, Some(1), false), at(16, Some(2), false)];
        requests.extend(good(22));
        let left = unexplained(&requests, &[of(Fault::Veth(1))]);
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].backend, Some(2));
    }

    #[test]
    fn a_link_that_flaps_explains_no_failure_of_an_open_connection() {
        let mut requests = vec![at(15, Some(1), false), at(16, Some(1), false)];
        requests[1].stream.is_held = true;
        requests.extend(good(22));
        let left = unexplained(&requests, &[of(Fault::Veth(1))]);
        assert_eq!(left.len(), 1);
        assert!(left[0].stream.is_held);
    }

    #[test]
    fn a_connection_that_was_not_used_meanwhile_may_have_been_lost_meanwhile() {
        let held = Stream { is_held: true, ..NEW };
        let [begin, end] = [12, 60].map(Duration::from_secs);
        let error = Some("reset".to_owned());
        let mut requests = good(22);
        requests.push(Request { stream: held, begin, end, backend: Some(0), error });
        assert!(unexplained(&requests, &[of(Fault::Front)]).is_empty());
    }
}
