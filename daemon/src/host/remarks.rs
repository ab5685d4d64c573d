//! What somebody should look at, each with what helps.

use ipnet::IpNet;
use podmesh_kernel::host::Obstacle;
use podmesh_kernel::route;
use podmesh_kernel::veth::Trouble;

use super::HostReport;

/// Ranges that one line names.
const MOST_RANGES: usize = 8;

/// Something on the host is not as it should be, without pods being in danger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remark {
    /// In `meshctl status`.
    pub(crate) code: &'static str,
    /// One sentence without an end.
    pub(crate) message: String,
    /// What helps.
    pub(crate) next: String,
}

impl Remark {
    /// A remark about the host.
    pub(super) fn new(message: impl ToString, next: impl Into<String>) -> Self {
        Self {
            code: "MESH-HOST-002",
            message: message.to_string(),
            next: next.into(),
        }
    }

    /// A pod that has addresses of others, or of nobody.
    pub(super) fn stray(trouble: Trouble) -> Self {
        Self {
            code: "MESH-POD-001",
            ..trouble.into()
        }
    }

    /// The kernel didn't say or do something.
    pub(super) fn of_kernel(error: &impl ToString) -> Self {
        Self::new(
            error.to_string(),
            "meshd tries again each half minute; if this stays, look at the limits of meshd's service and \
             at the kernel's log",
        )
    }

    /// A file for other programs could not be written.
    pub(super) fn of_file(trouble: String) -> Self {
        Self::new(
            trouble,
            "make room on that disk, or mount it writable; meshd writes the file by itself then",
        )
    }

    /// A route of somebody else in the table of podmesh.
    pub(super) fn of_route(problem: &impl ToString) -> Self {
        let next = format!(
            "remove it with `ip route del` and `table {}`, or end the program that puts it there",
            route::TABLE
        );
        Self::new(problem.to_string(), next)
    }

    /// Pods that stand without a membership.
    pub(super) fn of_ended(pods: usize) -> Self {
        let stand = match pods {
            0 | 1 => "a pod of a membership that has ended still stands and reaches".to_owned(),
            pods => format!("{pods} pods of a membership that has ended still stand and reach"),
        };
        Self::new(
            format!(
                "{stand} nobody outside of this node's pods; the guard stays until none is left"
            ),
            "delete what stands (`kubectl delete pod`), or `meshctl join` again: under its name this node gets its \
             pod CIDRs back as long as nobody else needs them",
        )
    }

    /// Ranges that stay closed beside those of the network.
    pub(super) fn of_former(closed: &[IpNet]) -> Option<Self> {
        let named: Vec<_> = closed
            .iter()
            .take(MOST_RANGES)
            .map(IpNet::to_string)
            .collect();
        let more = match closed.len().saturating_sub(MOST_RANGES) {
            0 => String::new(),
            more => format!(" and {more} more ranges"),
        };
        (!named.is_empty()).then(|| {
            Self::new(
                format!(
                    "pods of a membership that has ended still stand, so that packets to its ranges go nowhere: {}{more}",
                    named.join(", ")
                ),
                "delete those pods, which MESH-POD-001 names (`kubectl delete pod`); the ranges are free as soon as \
                 none is left",
            )
        })
    }
}

impl From<Trouble> for Remark {
    fn from(trouble: Trouble) -> Self {
        Self::new(trouble.message, trouble.next)
    }
}

impl From<&Obstacle> for Remark {
    fn from(obstacle: &Obstacle) -> Self {
        Self::new(obstacle, obstacle.next())
    }
}

/// The first `most` of these lines, and how many `others` there are.
pub(super) fn shorten(report: &mut HostReport, lines: Vec<Remark>, most: usize, others: &str) {
    let more = lines.len().saturating_sub(most);
    let last = lines.get(most).cloned();
    report.remarks.extend(lines.into_iter().take(most));
    report.remarks.extend(last.map(|last| Remark {
        message: format!("and {more} {others}"),
        ..last
    }));
}
