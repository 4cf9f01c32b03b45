use super::*;

const NONE: (Option<Unit>, Option<&str>) = (None, None);

fn parser((unit, format): (Option<Unit>, Option<&str>), values: &[TimeValue]) -> Result<TimeParser, String> {
    let mut sample = TimeSample::new(&TimeOptions::new(unit, format)?);
    for value in values {
        if !sample.add(*value) {
            break;
        }
    }
    sample.parser()
}

/// Times of a file of texts.
fn times(options: (Option<Unit>, Option<&str>), texts: &[&str]) -> Vec<Result<i64, String>> {
    let values: Vec<TimeValue> = texts.iter().map(|text| TimeValue::Text(text)).collect();
    let parser = parser(options, &values).unwrap();
    values.iter().map(|value| parser.milliseconds(*value)).collect()
}

#[test]
fn most_rows_tell_the_unit() {
    for (texts, wanted) in [
        (["1400000001", "1400000002.438", "1.4e9"], [1_400_000_001_000, 1_400_000_002_438, 1_400_000_000_000]),
        (["1400000001000", "1400000002438", "5"], [1_400_000_001_000, 1_400_000_002_438, 5]),
        (["1400000001000000", "1400000002438999", "0"], [1_400_000_001_000, 1_400_000_002_438, 0]),
        (["1400000001000000000", "1400000002438999999", "0"], [1_400_000_001_000, 1_400_000_002_438, 0]),
        (["20140513", "20140514", "20140515"], [1_399_939_200_000, 1_400_025_600_000, 1_400_112_000_000]),
        (["20140513165321", "20140514000000", "20140515"], [1_400_000_001_000, 1_400_025_600_000, 1_400_112_000_000]),
        (["1", "20000101", "3"], [1000, 20_000_101_000, 3000]),
    ] {
        assert_eq!(times(NONE, &texts), wanted.map(Ok), "{texts:?}");
    }
    let parser = parser(NONE, &[TimeValue::Float(1_593_878_903.438)]).unwrap();
    assert_eq!(parser.milliseconds(TimeValue::Float(1_593_878_903.438)), Ok(1_593_878_903_438));
    assert_eq!(parser.milliseconds(TimeValue::Date(7)), Ok(7));
    assert!(parser.milliseconds(TimeValue::Float(f64::NAN)).is_err());
    assert_eq!(parser.describe(), "times in seconds");
}

#[test]
fn numbers_of_another_unit_are_errors() {
    let mixed = times(NONE, &["1400000001000", "1400000002000", "1400000003"]);
    assert_eq!(mixed[..2], [Ok(1_400_000_001_000), Ok(1_400_000_002_000)]);
    assert!(mixed[2].as_ref().unwrap_err().contains("1400000003 is in seconds"), "{mixed:?}");
    let mixed = times(NONE, &["1400000001", "1400000002", "20140513", "1400000003000000"]);
    assert!(mixed[2].as_ref().unwrap_err().contains("is a date"), "{mixed:?}");
    assert!(mixed[3].as_ref().unwrap_err().contains("microseconds"), "{mixed:?}");
    // A unit that the user gives counts more than the rows.
    let stated = times((Some(Unit::Milliseconds), None), &["1400000001000", "1400000003"]);
    assert_eq!(stated, [Ok(1_400_000_001_000), Ok(1_400_000_003)]);
    for (unit, text) in [(Unit::Seconds, "-5"), (Unit::Seconds, "1400000001000"), (Unit::Nanoseconds, "-1.5")] {
        let error = times((Some(unit), None), &[text]).remove(0).unwrap_err();
        assert!(error.contains(&format!("is not between 1970 and 2100 in {unit}")), "{error}");
    }
    for text in ["", " ", "soon", "nan", "inf", "1e300", "99999999999999999999", "1900-01-01", "2101-01-01"] {
        assert!(times(NONE, &[text])[0].is_err(), "{text}");
    }
}

#[test]
fn the_order_of_day_and_month() {
    let day = 86_400_000;
    // One row decides for all.
    assert_eq!(times(NONE, &["1/2/2014", "13/2/2014"]), [Ok(1_391_212_800_000), Ok(1_391_212_800_000 + 12 * day)]);
    assert_eq!(times(NONE, &["1/2/2014", "2/13/2014"])[0], Ok(1_388_620_800_000));
    let error = parser(NONE, &[TimeValue::Text("1/2/2014")]).err().unwrap();
    assert!(error.contains("1/2/2014") && error.contains("option `time_format`"), "{error}");
    // Both in one file: the rarer one is an error.
    let both = times(NONE, &["13/2/2014", "14/2/2014", "2/15/2014"]);
    assert!(both[2].is_err(), "{both:?}");
    for (format, text, wanted) in [
        ("%d/%m/%Y", "1/2/2014", 1_391_212_800_000),
        ("%m/%d/%Y %I:%M %p", "1/2/2014 1:00 PM", 1_388_620_800_000 + 13 * 3_600_000),
        ("%d.%m.%y %H:%M:%S %z", "13.05.14 17:53:21 +0100", 1_400_000_001_000),
        ("%s", "1400000001", 1_400_000_001_000),
        ("%Y%m%d", "20140513", 1_399_939_200_000),
    ] {
        assert_eq!(times((None, Some(format)), &[text]), [Ok(wanted)], "{format}");
    }
    let error = times((None, Some("%d/%m/%Y")), &["2014-05-13"]).remove(0).unwrap_err();
    assert!(error.contains("is not of the form %d/%m/%Y"), "{error}");
    assert!(TimeOptions::new(None, Some("%Q")).is_err());
    assert!(TimeOptions::new(Some(Unit::Seconds), Some("%Y")).is_err());
}
