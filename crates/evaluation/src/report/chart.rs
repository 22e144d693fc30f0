//! Lines over steps, as SVG. A chart is drawn 360 units wide, so that its letters can be read on a telephone.

use super::html::Html;
use super::numbers;
use super::{Chart, Series};

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 210.0;
/// Of the area of the lines.
const LEFT: f64 = 46.0;
const RIGHT: f64 = WIDTH - 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = HEIGHT - 24.0;
/// More points than this on one line cannot be told apart.
const POINTS: usize = 400;
/// About how many means a line of many points is shown by.
const RUNS: usize = 50;
/// Colours, after which lines are dashed.
const COLOURS: usize = 6;
const CLASSES: [&str; 3 * COLOURS] = [
    "line c0",
    "line c1",
    "line c2",
    "line c3",
    "line c4",
    "line c5",
    "line c0 d1",
    "line c1 d1",
    "line c2 d1",
    "line c3 d1",
    "line c4 d1",
    "line c5 d1",
    "line c0 d2",
    "line c1 d2",
    "line c2 d2",
    "line c3 d2",
    "line c4 d2",
    "line c5 d2",
];

/// The range of an axis.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    /// Where `low` and `high` are drawn.
    at: [f64; 2],
}

impl Axis {
    /// Of finite values; `None` without one.
    fn over(values: impl Iterator<Item = f64>, at: [f64; 2]) -> Option<Self> {
        let finite = values.filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        // A line that never moves is drawn in the middle.
        let margin = match low == high {
            true if low == 0.0 => 1.0,
            true => low.abs() / 2.0,
            false => 0.0,
        };
        (low <= high).then_some(Self { low: low - margin, high: high + margin, at })
    }

    fn place(&self, value: f64) -> f64 {
        self.at[0] + (value - self.low) / (self.high - self.low) * (self.at[1] - self.at[0])
    }

    /// Round numbers inside the range, about so many, and how many decimals they need.
    fn ticks(&self, about: f64) -> (Vec<f64>, usize) {
        let rough = (self.high - self.low) / about;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        ((first..=last).map(|number| number as f64 * step).collect(), decimals)
    }
}

/// A chart with its legend. `marks` are steps at which something happened.
pub(super) fn chart(html: &mut Html, chart: &Chart, marks: &[u64]) {
    let points = || chart.series.iter().flat_map(|series| &series.points).filter(|(step, value)| step.is_finite() && value.is_finite());
    let across = Axis::over(points().map(|(step, _)| *step), [LEFT, RIGHT]);
    let up = Axis::over(points().map(|(_, value)| *value), [BOTTOM, TOP]);
    html.tag("figure", &[("class", "chart")], |html| {
        html.leaf("h3", &[], &chart.title);
        match across.zip(up) {
            Some((across, up)) => svg(html, chart, &Axes { across, up }, marks),
            None => html.leaf("p", &[("class", "quiet")], "No finite value."),
        }
        html.tag("figcaption", &[], |html| {
            if !chart.note.is_empty() {
                html.leaf("p", &[], &chart.note);
            }
            html.tag("ul", &[("class", "legend")], |html| {
                chart.series.iter().enumerate().for_each(|(place, series)| legend(html, place, series));
            });
        });
    });
}

/// The axis of steps and the axis of values.
struct Axes {
    across: Axis,
    up: Axis,
}

fn svg(html: &mut Html, chart: &Chart, Axes { across, up }: &Axes, marks: &[u64]) {
    let view = format!("0 0 {WIDTH} {HEIGHT}");
    let label = format!("Line chart of {} over steps; the legend below gives first and last values.", chart.title);
    html.tag("svg", &[("viewBox", &view), ("role", "img"), ("aria-label", &label)], |html| {
        let (ticks, decimals) = up.ticks(4.0);
        for tick in ticks {
            let y = format!("{:.1}", up.place(tick));
            html.leaf("line", &[("class", "grid"), ("x1", &LEFT.to_string()), ("x2", &RIGHT.to_string()), ("y1", &y), ("y2", &y)], "");
            let (x, y) = ((LEFT - 5.0).to_string(), format!("{:.1}", up.place(tick) + 4.0));
            html.leaf("text", &[("x", &x), ("y", &y), ("text-anchor", "end")], &axis_number(tick, decimals));
        }
        let (ticks, decimals) = across.ticks(5.0);
        for tick in ticks {
            let x = format!("{:.1}", across.place(tick));
            html.leaf("text", &[("x", &x), ("y", &(HEIGHT - 8.0).to_string()), ("text-anchor", "middle")], &axis_number(tick, decimals));
        }
        for mark in marks.iter().map(|mark| *mark as f64).filter(|mark| (across.low..=across.high).contains(mark)) {
            let x = format!("{:.1}", across.place(mark));
            let ends = [("class", "mark"), ("x1", &*x), ("x2", &x), ("y1", &TOP.to_string()), ("y2", &BOTTOM.to_string())];
            html.tag("line", &ends, |html| html.leaf("title", &[], &format!("the sentinel spoke at step {mark}")));
        }
        for (place, series) in chart.series.iter().enumerate() {
            let Some((_, means)) = run_means(&series.points) else {
                html.leaf("path", &[("class", class(place)), ("d", &path(&series.points, across, up))], "");
                continue;
            };
            html.tag("g", &[("class", "faint")], |html| {
                html.leaf("path", &[("class", class(place)), ("d", &path(&thinned(&series.points), across, up))], "");
            });
            html.leaf("path", &[("class", class(place)), ("d", &path(&means, across, up))], "");
        }
    });
}

fn legend(html: &mut Html, place: usize, series: &Series) {
    html.tag("li", &[], |html| {
        html.tag("svg", &[("class", "swatch"), ("viewBox", "0 0 24 8"), ("aria-hidden", "true")], |html| {
            html.leaf("path", &[("class", class(place)), ("d", "M0 4H24")], "");
        });
        let n = series.points.iter().filter(|(_, value)| value.is_finite()).count();
        let means = run_means(&series.points);
        let shown = means.as_ref().map_or(&series.points, |(_, means)| means);
        let mut finite = shown.iter().map(|(_, value)| value).filter(|value| value.is_finite());
        let first = finite.next();
        let how = means.as_ref().map_or_else(String::new, |(run, _)| format!(", means of {run}"));
        let course = match (first, finite.next_back().or(first)) {
            (Some(first), Some(last)) => format!(" {} \u{2192} {}", numbers::plain(*first), numbers::plain(*last)),
            _ => " no finite value".into(),
        };
        html.leaf("span", &[("class", "name")], &series.name);
        html.leaf("span", &[("class", "number")], &format!("{course} (n = {n}{how})"));
    });
}

fn class(place: usize) -> &'static str {
    CLASSES[place % CLASSES.len()]
}

fn axis_number(value: f64, decimals: usize) -> String {
    // What would be longer than the room beside the axis.
    if value.abs() >= 1e6 || (decimals > 4 && value != 0.0) {
        return format!("{value:.1e}").replace('-', "\u{2212}");
    }
    let shown = if decimals > 4 { "0".into() } else { format!("{value:.decimals$}") };
    if shown.chars().all(|digit| "-0.".contains(digit)) { shown.replace('-', "") } else { shown.replace('-', "\u{2212}") }
}

/// Where a line has many points, how many make a run, and the mean of each run at its middle step: the line to look at, of which all points are
/// the background. A run without a finite value is a gap.
fn run_means(points: &[(f64, f64)]) -> Option<(usize, Vec<(f64, f64)>)> {
    let run = points.len() / RUNS;
    let mean = |run: &[(f64, f64)]| {
        let finite = run.iter().filter(|(_, value)| value.is_finite());
        let (count, sum) = finite.fold((0, 0.0), |(count, sum), (_, value)| (count + 1, sum + value));
        (run[run.len() / 2].0, if count > 0 { sum / f64::from(count) } else { f64::NAN })
    };
    (run > 2).then(|| (run, points.chunks(run).map(mean).collect()))
}

/// The line, broken where a value is not finite.
fn path(points: &[(f64, f64)], across: &Axis, up: &Axis) -> String {
    let mut path = String::new();
    let mut command = 'M';
    for (step, value) in points {
        if !(step.is_finite() && value.is_finite()) {
            command = 'M';
            continue;
        }
        path.push_str(&format!("{command}{:.1} {:.1}", across.place(*step), up.place(*value)));
        if command == 'M' {
            // A point without neighbours is a dot: the line's caps are round.
            path.push_str("h0");
        }
        command = 'L';
    }
    path
}

/// Points, or of each run of many the lowest and the highest, so that no spike is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points.to_vec();
    }
    let run = (2 * points.len()).div_ceil(POINTS);
    let extremes = |run: &[(f64, f64)]| {
        let place = |larger: fn(f64, f64) -> bool| {
            (1..run.len()).fold(0, |best, next| if run[best].1.is_nan() || larger(run[next].1, run[best].1) { next } else { best })
        };
        let (low, high) = (place(|one, other| one < other), place(|one, other| one > other));
        [run[low.min(high)], run[low.max(high)]]
    };
    points.chunks(run).flat_map(extremes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> (Axis, Axis) {
        (Axis { low: 0.0, high: 10.0, at: [0.0, 100.0] }, Axis { low: 0.0, high: 1.0, at: [50.0, 0.0] })
    }

    #[test]
    fn points_are_placed_and_gaps_stay_open() {
        let (across, up) = unit();
        let found = path(&[(0.0, 0.0), (5.0, 1.0), (6.0, f64::NAN), (10.0, 0.5)], &across, &up);
        assert_eq!(found, "M0.0 50.0h0L50.0 0.0M100.0 25.0h0");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |low, high| Axis { low, high, at: [0.0, 1.0] }.ticks(4.0);
        assert_eq!(axis(0.0, 1000.0), (vec![0.0, 500.0, 1000.0], 0));
        let (ticks, decimals) = axis(-0.03, 0.041);
        let shown: Vec<_> = ticks.iter().map(|tick| axis_number(*tick, decimals)).collect();
        assert_eq!(shown, ["\u{2212}0.02", "0.00", "0.02", "0.04"]);
        let (ticks, decimals) = axis(0.0, 1e-5);
        let shown: Vec<_> = ticks.iter().map(|tick| axis_number(*tick, decimals)).collect();
        assert_eq!(shown, ["0", "5.0e\u{2212}6", "1.0e\u{2212}5"]);
    }

    #[test]
    fn a_spike_among_many_points_is_kept() {
        let mut points: Vec<_> = (0..5000).map(|i| (f64::from(i), 0.5)).collect();
        points[1234].1 = 9.0;
        points[4321].1 = -9.0;
        let thin = thinned(&points);
        assert!(thin.len() <= POINTS && thin.len() > POINTS / 2, "{}", thin.len());
        assert!(thin.contains(&(1234.0, 9.0)) && thin.contains(&(4321.0, -9.0)));
        assert!(thin.is_sorted_by(|one, next| one.0 <= next.0));
        points[10].1 = f64::NAN;
        assert!(thinned(&points).iter().all(|(_, value)| value.is_finite()));
    }

    #[test]
    fn many_points_are_shown_by_the_means_of_runs() {
        assert_eq!(run_means(&[(0.0, 1.0); 149]), None);
        let points: Vec<_> = (0..200).map(|i| (f64::from(i), if i < 4 { f64::NAN } else { f64::from(i % 4) })).collect();
        let (run, means) = run_means(&points).unwrap();
        assert_eq!((run, means.len(), means[1]), (4, 50, (6.0, 1.5)));
        assert!(means[0].1.is_nan());
    }

    #[test]
    fn a_line_that_never_moves_has_an_axis_and_nothing_has_none() {
        for value in [0.0, 3.0, -2e9, 1.0 / 65536.0] {
            let axis = Axis::over([value; 3].into_iter(), [0.0, 10.0]).unwrap();
            assert_eq!(axis.place(value), 5.0);
            assert!(axis.high - axis.low <= if value == 0.0 { 2.0 } else { value.abs() }, "a small value is seen, too");
        }
        assert!(Axis::over([f64::NAN, f64::INFINITY].into_iter(), [0.0, 1.0]).is_none());
    }
}
