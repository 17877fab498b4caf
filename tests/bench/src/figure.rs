//! One figure: a line of output, and whether it is within its budget.

use serde::Serialize;

use crate::budgets::{Budget, Budgets};

/// One line of output.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    value: f64,
    unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<f64>,
    /// The budget is the least that it may be, not the most.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    at_least: bool,
}

impl Figure {
    /// Why it is not within its budget, if it is not: of the ratio to a peer if there is
    /// one, else of the value.
    pub(crate) fn excess(&self) -> Option<String> {
        let budget = self.budget?;
        let (judged, what) = match (&self.peer, self.ratio) {
            (Some(peer), Some(ratio)) => (ratio, format!(" of {peer}'s")),
            _ => (self.value, format!(" {}", self.unit)),
        };
        let (broken, side, limit) = match self.at_least {
            false => (judged > budget, "over", "at most"),
            true => (judged < budget, "under", "at least"),
        };
        broken.then(|| {
            let name = &self.name;
            format!("{name} is {side} its budget: {judged:.3}{what}, {limit} {budget}")
        })
    }
}

/// Figures as they are measured.
#[derive(Debug)]
pub(crate) struct Figures<'a> {
    budgets: &'a Budgets,
    pub(crate) list: Vec<Figure>,
}

impl<'a> Figures<'a> {
    pub(crate) fn new(budgets: &'a Budgets) -> Self {
        let list = Vec::new();
        Self { budgets, list }
    }

    /// A figure that is judged by its value, if it has a budget.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &str) {
        let budget = self.budgets.of(name);
        self.push(name, value, unit, None, budget);
    }

    /// A figure that is judged by its ratio to a peer's value.
    pub(crate) fn beside(&mut self, name: &str, value: f64, unit: &str, peer: (&str, f64)) {
        let budget = self.budgets.of(name);
        self.push(name, value, unit, Some(peer), budget);
    }

    /// A figure whose peer is not there, so that nothing judges it.
    pub(crate) fn unjudged(&mut self, name: &str, value: f64, unit: &str) {
        self.push(name, value, unit, None, None);
    }

    fn push(
        &mut self,
        name: &str,
        value: f64,
        unit: &str,
        peer: Option<(&str, f64)>,
        budget: Option<Budget>,
    ) {
        self.list.push(Figure {
            name: name.to_owned(),
            value,
            unit: unit.to_owned(),
            peer: peer.map(|(name, _)| name.to_owned()),
            ratio: peer.map(|(_, of)| value / of),
            budget: budget.map(|(Budget::Most(budget) | Budget::Least(budget))| budget),
            at_least: matches!(budget, Some(Budget::Least(_))),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_judged_where_there_is_a_peer_and_a_value_where_there_is_none() {
        let budgets = Budgets::parse("a = 0.5\nb = 10\nc = 0.5").unwrap();
        let mut figures = Figures::new(&budgets);
        figures.beside("a", 60.0, "ns", ("peer 1.0", 100.0));
        figures.add("b", 10.0, "exits");
        figures.unjudged("c", 60.0, "ns");
        figures.add("d", 60.0, "ns");
        let excess: Vec<_> = figures.list.iter().map(Figure::excess).collect();
        let why = "a is over its budget: 0.600 of peer 1.0's, at most 0.5";
        assert_eq!(excess, [Some(why.to_owned()), None, None, None]);

        let mut figures = Figures::new(&budgets);
        figures.add("b", 11.0, "exits");
        let why = "b is over its budget: 11.000 exits, at most 10";
        let [figure] = figures.list.as_slice() else {
            panic!("one figure was added")
        };
        assert_eq!(figure.excess().as_deref(), Some(why));
    }

    #[test]
    fn a_figure_may_have_to_be_large() {
        let budgets = Budgets::parse("a = \"at least 0.7\"\nb = \"at least 10\"").unwrap();
        let mut figures = Figures::new(&budgets);
        figures.beside("a", 60.0, "MB/s", ("peer", 100.0));
        figures.add("b", 10.0, "MB/s");
        let excess: Vec<_> = figures.list.iter().map(Figure::excess).collect();
        let why = "a is under its budget: 0.600 of peer's, at least 0.7";
        assert_eq!(excess, [Some(why.to_owned()), None]);
    }
}
