//! The plots of a report.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::svg::{Area, INK, TEXT, colour, figure, padded};
use crate::Result;

/// Points of a series that are marked one by one, at most.
const MOST_MARKED: usize = 12;
/// Width of a figure.
const WIDTH: u32 = 900;

/// A value with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Value {
    /// Mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A line of a dot plot: a name, and a value for each kind of mark.
pub(super) struct DotRow {
    /// Label beside the line.
    pub name: String,
    /// A value a kind of mark; none where there is none.
    pub values: Vec<Option<Value>>,
}

/// A series of points.
pub(super) struct Series {
    /// Name in the legend; none for a line in the background.
    pub name: Option<String>,
    /// x and y, by x.
    pub points: Vec<(f64, Value)>,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws a row of dots with intervals for each name; `marks` names the kinds of mark.
pub(super) fn dots(name: &str, axis: &str, marks: &[&str], rows: &[DotRow]) -> Result<Option<String>> {
    let values = rows.iter().flat_map(|row| row.values.iter().flatten());
    let Some(x) = padded(values.flat_map(|value| [value.low, value.high])) else { return Ok(None) };
    let row_height = 22;
    let legend = if marks.len() > 1 { 26 } else { 0 };
    let height = row_height * rows.len() as u32 + 62 + legend;
    let longest = rows.iter().map(|row| shown(&row.name).chars().count()).max().unwrap_or(0);
    let left = (8 * longest as i32 + 16).clamp(80, 360);
    figure(name, (WIDTH, height), |area| dot_chart(area, axis, marks, rows, x, left)).map(Some)
}

fn dot_chart(area: &Area, axis: &str, marks: &[&str], rows: &[DotRow], x: std::ops::Range<f64>, left: i32) -> Drawn {
    let (head, body) = area.split_vertically(if marks.len() > 1 { 26 } else { 0 });
    if marks.len() > 1 {
        key(&head, marks, left)?;
    }
    let count = rows.len() as f64;
    let (start, x_decimals) = (x.start, decimals(&x));
    let mut chart = ChartBuilder::on(&body)
        .margin(8)
        .set_label_area_size(LabelAreaPosition::Left, left)
        .set_label_area_size(LabelAreaPosition::Bottom, 42)
        .build_cartesian_2d(x, count..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_labels(7)
        .x_label_formatter(&|x| number(*x, x_decimals))
        .x_desc(axis)
        .label_style(("sans-serif", TEXT).into_font().color(&INK))
        .axis_style(INK.mix(0.5))
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let style = ("sans-serif", TEXT).into_font().color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
    for (index, row) in rows.iter().enumerate() {
        let (pixel_x, pixel_y) = chart.backend_coord(&(start, index as f64 + 0.5));
        area.draw(&Text::new(shown(&row.name), (pixel_x - 8, pixel_y), style.clone()))?;
        for (mark, value) in row.values.iter().enumerate() {
            let Some(Value { mean, low, high }) = value else { continue };
            let y = index as f64 + (mark as f64 + 1.0) / (row.values.len() as f64 + 1.0);
            let line = colour(mark).stroke_width(2);
            chart.draw_series([PathElement::new(vec![(*low, y), (*high, y)], line)])?;
            chart.draw_series([Circle::new((*mean, y), 4, colour(mark).filled())])?;
        }
    }
    Ok(())
}

/// Draws what the colours mean, in one line or several.
fn key(area: &Area, names: &[&str], left: i32) -> Drawn {
    let style = ("sans-serif", TEXT).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    let (mut x, mut y) = (left + 8, 14);
    for (series, name) in names.iter().enumerate() {
        let name = shown(name);
        let width = 8 * name.chars().count() as i32 + 40;
        if x + width > WIDTH as i32 && x > left + 8 {
            (x, y) = (left + 8, y + 20);
        }
        area.draw(&Circle::new((x, y), 5, colour(series).filled()))?;
        area.draw(&Text::new(name, (x + 12, y), style.clone()))?;
        x += width;
    }
    Ok(())
}

/// Returns how many lines [`key`] takes.
fn key_lines(names: &[&str], left: i32) -> u32 {
    let (mut x, mut lines) = (left + 8, 1);
    for name in names {
        let width = 8 * shown(name).chars().count() as i32 + 40;
        if x + width > WIDTH as i32 && x > left + 8 {
            (x, lines) = (left + 8, lines + 1);
        }
        x += width;
    }
    lines
}

/// Draws series of points as lines, with their intervals where they have a width; series without a
/// name are thin lines behind the others.
pub(super) fn lines(name: &str, x_axis: &str, y_axis: &str, series: &[Series]) -> Result<Option<String>> {
    let points = series.iter().flat_map(|series| &series.points);
    let Some(x) = padded(points.clone().map(|(x, _)| *x)) else { return Ok(None) };
    let Some(y) = padded(points.flat_map(|(_, value)| [value.low, value.high])) else { return Ok(None) };
    let names: Vec<&str> = series.iter().filter_map(|series| series.name.as_deref()).collect();
    let head = 8 + 20 * key_lines(&names, 70);
    let draw = |area: &Area| -> Drawn {
        let (top, body) = area.split_vertically(head);
        key(&top, &names, 70)?;
        line_chart(&body, x_axis, y_axis, series, x, y)
    };
    figure(name, (WIDTH, 340 + head), draw).map(Some)
}

fn line_chart(
    area: &Area,
    x_axis: &str,
    y_axis: &str,
    series: &[Series],
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
) -> Drawn {
    let (x_decimals, y_decimals) = (decimals(&x), decimals(&y));
    let (width, named) = (x.end - x.start, series.iter().filter(|series| series.name.is_some()).count());
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .set_label_area_size(LabelAreaPosition::Left, 70)
        .set_label_area_size(LabelAreaPosition::Bottom, 42)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_labels(8)
        .y_labels(7)
        .x_label_formatter(&|x| number(*x, x_decimals))
        .y_label_formatter(&|y| number(*y, y_decimals))
        .x_desc(x_axis)
        .y_desc(y_axis)
        .label_style(("sans-serif", TEXT).into_font().color(&INK))
        .axis_style(INK.mix(0.5))
        .bold_line_style(INK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for Series { points, .. } in series.iter().filter(|series| series.name.is_none()) {
        chart.draw_series(LineSeries::new(points.iter().map(|(x, value)| (*x, value.mean)), INK.mix(0.25)))?;
    }
    for (index, Series { points, .. }) in series.iter().filter(|series| series.name.is_some()).enumerate() {
        let style = colour(index).stroke_width(2);
        // Intervals at the same x stand beside one another.
        let shift = (index as f64 - (named - 1) as f64 / 2.0) * 0.006 * width;
        let points: Vec<(f64, Value)> = match points.len() <= MOST_MARKED {
            true => points.iter().map(|(x, value)| (x + shift, *value)).collect(),
            false => points.clone(),
        };
        chart.draw_series(LineSeries::new(points.iter().map(|(x, value)| (*x, value.mean)), style))?;
        let wide = || points.iter().filter(|(_, value)| value.low < value.high);
        let bar = |(x, value): &(f64, Value)| PathElement::new(vec![(*x, value.low), (*x, value.high)], style);
        chart.draw_series(wide().map(bar))?;
        // Of few points each is marked.
        if points.len() <= MOST_MARKED {
            chart.draw_series(
                points.iter().map(|(x, value)| Circle::new((*x, value.mean), 4, colour(index).filled())),
            )?;
        }
    }
    Ok(())
}

/// Returns the decimals that tell the labels of an axis apart, at least four.
fn decimals(axis: &std::ops::Range<f64>) -> usize {
    let step = (axis.end - axis.start) / 8.0;
    (1.0 - step.log10().floor()).clamp(4.0, 17.0) as usize
}

/// Writes a number of an axis, without zeros at its end.
fn number(x: f64, decimals: usize) -> String {
    let text = format!("{x:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// Leaves out the middle of a name that would not fit beside a plot: names of cells differ at their
/// ends.
fn shown(name: &str) -> String {
    const LONGEST: usize = 42;
    // Names come from files: none may hold a control character.
    let name: String = name.replace(char::is_control, "?");
    let count = name.chars().count();
    if count <= LONGEST {
        return name;
    }
    let (begin, end) = (LONGEST / 2 - 1, LONGEST / 2);
    name.chars().take(begin).chain(['…']).chain(name.chars().skip(count - end)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(mean: f64) -> Value {
        Value { mean, low: mean - 0.1, high: mean + 0.1 }
    }

    #[test]
    fn fifty_rows_have_fifty_names() {
        let rows: Vec<DotRow> = (0..50)
            .map(|n| DotRow { name: format!("cell <{n}>"), values: vec![Some(value(f64::from(n))), None] })
            .collect();
        let svg = dots("plot", "NDCG@10", &["warm", "cold"], &rows).unwrap().unwrap();
        assert!((0..50).all(|n| svg.contains(&format!("cell &lt;{n}&gt;"))));
        assert_eq!(svg.matches("<circle").count(), 50 + 2, "a dot a row, and two in the key");
        assert!(dots("plot", "x", &["a"], &[]).unwrap().is_none());
    }

    #[test]
    fn long_names_keep_both_ends() {
        let name = format!("kind=msl,{},temperature=3.5", "x".repeat(60));
        let cut = shown(&name);
        assert_eq!(cut.chars().count(), 42);
        assert!(cut.starts_with("kind=msl,xxx") && cut.contains('…') && cut.ends_with("x,temperature=3.5"), "{cut}");
        assert_eq!(shown(&"é".repeat(42)), "é".repeat(42));
    }

    #[test]
    fn numbers_of_an_axis() {
        let numbers = [0.0, -0.000_001, 10.0, 0.1 + 0.2, -2.5, 1200.0].map(|x| number(x, 4));
        assert_eq!(numbers, ["0", "0", "10", "0.3", "-2.5", "1200"]);
        // Learning rates.
        assert_eq!([decimals(&(0.0..1.0)), decimals(&(1e-5..1e-4)), decimals(&(0.0..900.0))], [4, 6, 4]);
        assert_eq!(number(0.00005, decimals(&(1e-5..1e-4))), "0.00005");
    }

    #[test]
    fn lines_without_a_name_are_behind() {
        let series = |name: Option<&str>| Series {
            name: name.map(String::from),
            points: (0..5).map(|x| (f64::from(x), value(1.0))).collect(),
        };
        let svg = lines("plot", "step", "loss", &[series(Some("a")), series(None)]).unwrap().unwrap();
        assert!(svg.contains("step") && svg.contains("loss"));
        // Five dots of the named series and one in the key.
        assert_eq!(svg.matches("<circle").count(), 6);
        let flat = Value { mean: 2.0, low: 2.0, high: 2.0 };
        let one = [Series { name: Some("a".into()), points: vec![(1.0, flat)] }];
        assert!(lines("plot", "x", "y", &one).unwrap().is_some());
        let none = [Series { name: Some("a".into()), points: vec![(f64::NAN, Value { mean: f64::NAN, ..flat })] }];
        assert!(lines("plot", "x", "y", &none).unwrap().is_none());
    }
}
