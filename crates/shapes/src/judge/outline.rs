//! What an object could look like, pixel by pixel, and the one of these looks that fits best.

use crate::words::{Shape, emblem};

/// What can be fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outline {
    /// An object.
    Shape(Shape),
    /// The forbidden emblem.
    Emblem,
}

/// Where an outline is, how large, and how soft. In pixels, y down; a pixel's centre is at half numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pose {
    pub x: f32,
    pub y: f32,
    /// From edge to edge.
    pub extent: f32,
    /// Over how many pixels an edge goes from nothing to everything: 1 if anti-aliased and no more.
    pub ramp: f32,
}

/// The part of an image around one object: how much of each pixel is the object's.
#[derive(Debug, Clone)]
pub(super) struct Matte {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    /// Row by row, 0 to 1.
    pub values: Vec<f32>,
}

/// An outline's best pose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fit {
    pub outline: Outline,
    pub pose: Pose,
    /// The sum of squared differences.
    pub error: f32,
}

/// How much of a step of width `ramp` is done, `distance` behind its middle.
fn step(distance: f32, ramp: f32) -> f32 {
    (distance / ramp + 0.5).clamp(0.0, 1.0)
}

/// How much a strip from `-half` to `half` covers of a pixel of width `ramp` at `at`.
fn strip(at: f32, half: f32, ramp: f32) -> f32 {
    (step(half - at, ramp) + step(half + at, ramp) - 1.0).max(0.0)
}

/// [`strip`] on a diagonal, where a square pixel's edge eases in and out over its diagonal's length.
fn diagonal_strip(at: f32, half: f32, ramp: f32) -> f32 {
    let ease = |distance: f32| {
        let done = step(distance, ramp * std::f32::consts::SQRT_2);
        if done < 0.5 { 2.0 * done * done } else { 1.0 - 2.0 * (1.0 - done) * (1.0 - done) }
    };
    (ease(half - at) + ease(half + at) - 1.0).max(0.0)
}

/// Either of two coverages.
fn union(a: f32, b: f32) -> f32 {
    a + b - a * b
}

impl Outline {
    /// Its area in units of the squared extent, and how far its centre of mass is below its centre in units of the extent.
    fn moments(self) -> (f32, f32) {
        match self {
            Self::Shape(Shape::Circle) => (std::f32::consts::FRAC_PI_4, 0.0),
            Self::Shape(shape) => polygon_moments(shape.corners()),
            Self::Emblem => (emblem_area() / emblem::EXTENT.powi(2), 0.0),
        }
    }

    /// The half width of what `Shape::corners` gives as the widest strip.
    fn arm(shape: Shape) -> f32 {
        shape.corners()[1][0]
    }

    /// How much of the pixel at `(x, y)` it covers, 0 to 1. Exact for squares and crosses whose ramp is 1.
    pub fn coverage(self, pose: &Pose, x: f32, y: f32) -> f32 {
        let (x, y, extent, ramp) = (x - pose.x, y - pose.y, pose.extent, pose.ramp);
        // A slanted edge crosses a pixel over more than its width.
        const SLANTED: f32 = 1.2;
        match self {
            Self::Shape(Shape::Circle) => step(extent / 2.0 - x.hypot(y), ramp * 1.1),
            Self::Shape(Shape::Square) => {
                let half = Self::arm(Shape::Square) * extent;
                strip(x, half, ramp) * strip(y, half, ramp)
            }
            Self::Shape(Shape::Cross) => {
                let (arm, half) = (Self::arm(Shape::Cross) * extent, extent / 2.0);
                let tall = strip(x, arm, ramp) * strip(y, half, ramp);
                let wide = strip(x, half, ramp) * strip(y, arm, ramp);
                // The two strips' common middle is the square of both arms, whatever their ends do.
                tall + wide - strip(x, arm, ramp) * strip(y, arm, ramp)
            }
            Self::Shape(Shape::Triangle) => {
                let [tip, corner, _] = Shape::Triangle.corners() else { return 0.0 };
                let slope = corner[0] / (corner[1] - tip[1]);
                let half = ((y - tip[1] * extent) * slope).max(0.0);
                strip(x.abs(), half, ramp * SLANTED) * step(corner[1] * extent - y, ramp)
            }
            Self::Emblem => {
                let scale = extent / emblem::EXTENT * std::f32::consts::SQRT_2;
                let (half, arm) =
                    ((emblem::EXTENT - emblem::STROKE) / 2.0 * scale, emblem::STROKE / 4.0 * scale * std::f32::consts::SQRT_2);
                let (u, v) = ((x + y) * std::f32::consts::FRAC_1_SQRT_2, (x - y) * std::f32::consts::FRAC_1_SQRT_2);
                let stroke = |along: f32, across: f32| diagonal_strip(along, half, ramp) * diagonal_strip(across, arm, ramp);
                union(stroke(u, v), stroke(v, u))
            }
        }
    }

    /// The pose of least squared error, from where the matte's area and centre of mass put it: a few Levenberg-Marquardt steps.
    pub fn fit(self, matte: &Matte, side: f32) -> Fit {
        let (area, [x, y]) = matte.mass();
        let (unit_area, below) = self.moments();
        let extent = (area / unit_area).sqrt();
        let mut fit = Fit { outline: self, pose: Pose { x, y: y - below * extent, extent, ramp: 1.8 }.within(side), error: f32::INFINITY };
        let mut equations = matte.equations(self, &fit.pose);
        fit.error = equations.error;
        let mut damping = 0.01;
        for _ in 0..8 {
            let Some(change) = equations.solve(damping) else { break };
            let Pose { x, y, extent, ramp } = fit.pose;
            let pose = Pose { x: x + change[0], y: y + change[1], extent: extent + change[2], ramp: ramp + change[3] }.within(side);
            let next = matte.equations(self, &pose);
            let gain = fit.error - next.error;
            if gain > 0.0 {
                (fit.pose, fit.error, equations) = (pose, next.error, next);
                damping *= 0.2;
                if gain < 0.002 * fit.error + 1e-3 {
                    break;
                }
            } else {
                damping *= 20.0;
                if damping > 1e3 {
                    break;
                }
            }
        }
        fit
    }
}

/// The emblem's area in squared image sides: two strokes, less the square in the middle that both cover.
pub(super) fn emblem_area() -> f32 {
    let length = (emblem::EXTENT - emblem::STROKE) * std::f32::consts::SQRT_2;
    2.0 * length * emblem::STROKE - emblem::STROKE.powi(2)
}

/// A polygon's area and the y of its centre of mass.
fn polygon_moments(corners: &[[f32; 2]]) -> (f32, f32) {
    let next = corners.iter().cycle().skip(1);
    let (twice, moment) = corners.iter().zip(next).fold((0.0, 0.0), |(twice, moment), (a, b)| {
        let cross = a[0] * b[1] - b[0] * a[1];
        (twice + cross, moment + cross * (a[1] + b[1]))
    });
    (twice / 2.0, moment / (3.0 * twice))
}

impl Pose {
    /// The nearest that a search may try: an extent from 2 pixels to one and a half image sides, a ramp from 1 pixel to a quarter side.
    fn within(self, side: f32) -> Self {
        let reach = |value: f32| if value.is_finite() { value.clamp(-side, 2.0 * side) } else { 0.0 };
        Self {
            x: reach(self.x),
            y: reach(self.y),
            extent: reach(self.extent).clamp(2.0, (1.5 * side).max(2.0)),
            ramp: reach(self.ramp).clamp(1.0, (0.25 * side).max(1.0)),
        }
    }

    /// Whether all of it is in an image, but for a tenth of its extent.
    pub fn is_inside(&self, width: usize, height: usize) -> bool {
        let reach = 0.4 * self.extent;
        let is_within = |at: f32, length: usize| at >= reach && at + reach <= length as f32;
        is_within(self.x, width) && is_within(self.y, height)
    }
}

/// The normal equations of one step over `(x, y, extent, ramp)`.
struct Equations {
    error: f32,
    matrix: [[f32; 4]; 4],
    vector: [f32; 4],
}

impl Matte {
    /// All of it, in pixels, and its centre.
    pub fn mass(&self) -> (f32, [f32; 2]) {
        let (mut area, mut x, mut y) = (1e-6, 0.0, 0.0);
        for (i, value) in self.values.iter().enumerate() {
            let [px, py] = self.place(i);
            area += value;
            x += value * px;
            y += value * py;
        }
        (area, [x / area, y / area])
    }

    /// The mean width of the edges, in pixels, whatever the shape: `6 sum a (1 - a) / sum |grad a|` over the shares `a`.
    ///
    /// Along a line across a linear edge of width `w`, the integral of `a (1 - a)` is `w / 6`; the integral of the gradient's length over
    /// the plane is the length of the edges.
    pub fn softness(&self) -> f32 {
        let (mut mixed, mut length) = (0.0, 1e-6);
        for (i, a) in self.values.iter().enumerate() {
            mixed += a * (1.0 - a);
            let right = if (i + 1) % self.width == 0 { *a } else { self.values[i + 1] };
            let below = self.values.get(i + self.width).unwrap_or(a);
            length += (right - a).hypot(below - a);
        }
        6.0 * mixed / length
    }

    /// The centre of pixel `i` of the window in the image.
    pub fn place(&self, i: usize) -> [f32; 2] {
        [(self.left + i % self.width) as f32 + 0.5, (self.top + i / self.width) as f32 + 0.5]
    }

    fn equations(&self, outline: Outline, pose: &Pose) -> Equations {
        const STEP: f32 = 0.05;
        let Pose { x, y, extent, ramp } = *pose;
        let nearby = [
            Pose { x: x + STEP, ..*pose },
            Pose { y: y + STEP, ..*pose },
            Pose { extent: extent + STEP, ..*pose },
            Pose { ramp: ramp + STEP, ..*pose },
        ];
        let mut equations = Equations { error: 0.0, matrix: [[0.0; 4]; 4], vector: [0.0; 4] };
        let reach = extent / 2.0 + ramp + 1.0;
        for (i, value) in self.values.iter().enumerate() {
            let [px, py] = self.place(i);
            if (px - x).abs() > reach || (py - y).abs() > reach {
                equations.error += value * value;
                continue;
            }
            let covered = outline.coverage(pose, px, py);
            let residual = value - covered;
            equations.error += residual * residual;
            if covered == 0.0 || covered == 1.0 {
                continue;
            }
            let slopes = nearby.map(|pose| (outline.coverage(&pose, px, py) - covered) / STEP);
            for row in 0..4 {
                if slopes[row] != 0.0 {
                    equations.vector[row] += slopes[row] * residual;
                    for column in 0..4 {
                        equations.matrix[row][column] += slopes[row] * slopes[column];
                    }
                }
            }
        }
        equations
    }
}

impl Equations {
    /// The step, by elimination; `None` if nothing determines it.
    fn solve(&self, damping: f32) -> Option<[f32; 4]> {
        let (mut matrix, mut vector) = (self.matrix, self.vector);
        for (i, row) in matrix.iter_mut().enumerate() {
            row[i] += damping * row[i] + 1e-4;
        }
        for pivot in 0..4 {
            for row in pivot + 1..4 {
                let factor = matrix[row][pivot] / matrix[pivot][pivot];
                let from = matrix[pivot];
                matrix[row].iter_mut().zip(from).for_each(|(value, other)| *value -= factor * other);
                vector[row] -= factor * vector[pivot];
            }
        }
        for row in (0..4).rev() {
            let known: f32 = (row + 1..4).map(|column| matrix[row][column] * vector[column]).sum();
            vector[row] = (vector[row] - known) / matrix[row][row];
        }
        vector.iter().all(|value| value.is_finite()).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTLINES: [Outline; 5] = [
        Outline::Shape(Shape::Circle),
        Outline::Shape(Shape::Square),
        Outline::Shape(Shape::Triangle),
        Outline::Shape(Shape::Cross),
        Outline::Emblem,
    ];

    fn drawn(outline: Outline, pose: &Pose) -> Matte {
        let mut matte = Matte { left: 3, top: 5, width: 24, values: vec![0.0; 24 * 24] };
        matte.values = (0..24 * 24).map(|i| outline.coverage(pose, matte.place(i)[0], matte.place(i)[1])).collect();
        matte
    }

    #[test]
    fn moments_are_those_of_the_drawing() {
        assert_eq!(polygon_moments(&[[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]), (2.0, 0.5));
        for outline in OUTLINES {
            let pose = Pose { x: 15.2, y: 16.7, extent: 13.0, ramp: 1.0 };
            let (area, [x, y]) = drawn(outline, &pose).mass();
            let (unit_area, below) = outline.moments();
            assert!((area / 169.0 - unit_area).abs() < 0.02, "{outline:?}: {area}");
            assert!((x - pose.x).abs() < 0.05 && (y - pose.y - below * 13.0).abs() < 0.05, "{outline:?}: {x}, {y}");
        }
    }

    #[test]
    fn a_fit_finds_the_pose_again() {
        for outline in OUTLINES {
            let pose = Pose { x: 15.2, y: 16.7, extent: 12.0, ramp: 1.6 };
            let fit = outline.fit(&drawn(outline, &pose), 32.0);
            let Pose { x, y, extent, ramp } = fit.pose;
            let off = [x - pose.x, y - pose.y, extent - pose.extent, ramp - pose.ramp].map(f32::abs);
            assert!(off.iter().all(|off| *off < 0.1) && fit.error < 0.02, "{outline:?}: {fit:?}");
        }
    }

    #[test]
    fn softness_is_the_width_of_edges() {
        // The mean over where the edges are in their pixels.
        let phases = [0.0, 0.25, 0.5, 0.75];
        let one =
            |ramp: f32, at: f32| drawn(Outline::Shape(Shape::Square), &Pose { x: 15.0 + at, y: 17.0 + at, extent: 15.0, ramp }).softness();
        for ramp in [1.0, 2.0, 4.0] {
            let mean = phases.iter().map(|at| one(ramp, *at)).sum::<f32>() / 4.0;
            assert!((mean / ramp - 1.0).abs() < 0.1, "{ramp}: {mean}");
        }
    }
}
