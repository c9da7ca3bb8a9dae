package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// share is how much pgonce makes of what a contender makes: in the middle, least and most of all rounds.
type share struct {
	target, label       string
	middle, least, most float64
}

// share notes a comparison for the chart of its target.
func (r *report) share(row, contender string, ours, theirs series) {
	s := share{target: r.target, label: row + ", " + contender, middle: ours.over(theirs, (*sample).rate), least: math.Inf(1)}
	for i := range ours {
		ratio := ours[i].rate() / theirs[i].rate()
		s.least, s.most = min(s.least, ratio), max(s.most, ratio)
	}
	if s.least > 0 && !math.IsInf(s.most, 1) { // an instant of a smoke test may see nothing done
		r.shares = append(r.shares, s)
	}
}

// charts draws a chart for each target beside the page, and returns what refers to them.
func (r *report) charts(page string) (references string, err error) {
	base := strings.TrimSuffix(filepath.Base(page), ".md")
	for _, t := range targets() {
		var shares []share
		for _, s := range r.shares {
			if s.target == t.name {
				shares = append(shares, s)
			}
		}
		name := base + "-" + strings.ToLower(t.name) + ".svg"
		if len(shares) == 0 || strings.Contains(references, name) {
			continue
		}
		picture, err := drawShares(t.name+": the rate of pgonce, in multiples of each other one", shares)
		if err != nil {
			return "", fmt.Errorf("chart of %s: %w", t.name, err)
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(page), name), picture, 0o644); err != nil {
			return "", err
		}
		references += fmt.Sprintf("![%s: pgonce beside others](%s)\n\n", t.name, name)
	}
	return references, nil
}

// The colours are on white of our own, so that they are the same on a dark page.
var (
	ink   = color.RGBA{R: 0x1f, G: 0x23, B: 0x28, A: 0xff}
	faint = color.RGBA{R: 0xd0, G: 0xd7, B: 0xde, A: 0xff}
	mark  = color.RGBA{R: 0x09, G: 0x69, B: 0xda, A: 0xff}
)

// drawShares is a line for each share, on a scale on which twice as much is as far to the right as half is to the left.
func drawShares(title string, shares []share) ([]byte, error) {
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text, p.X.Scale = title, plot.LogScale{}
	p.X.Min, p.X.Max = 0.5, 2.0
	names, middles, errs := make([]string, len(shares)), make(plotter.XYs, len(shares)), make(plotter.XErrors, len(shares))
	for i, s := range shares {
		y := len(shares) - 1 - i // the first one is on top
		names[y] = s.label
		middles[i] = plotter.XY{X: s.middle, Y: float64(y)}
		errs[i].Low, errs[i].High = s.middle-s.least, s.most-s.middle
		p.X.Min, p.X.Max = min(p.X.Min, s.least/1.2), max(p.X.Max, s.most*1.2)
	}
	p.NominalY(names...)
	p.X.Tick.Marker = plot.ConstantTicks(ticks(p.X.Min, p.X.Max))
	for _, style := range []*text.Style{&p.Title.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label} {
		style.Color, style.Font.Variant = ink, "Sans"
	}
	if err := addShares(p, middles, errs); err != nil {
		return nil, err
	}
	p.Y.Min, p.Y.Max = -0.5, float64(len(shares))-0.5
	canvas := vgsvg.New(6.5*vg.Inch, vg.Length(len(shares))*0.25*vg.Inch+0.7*vg.Inch)
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	const font = "font-family:Liberation Sans" // which few have
	return bytes.ReplaceAll(b.Bytes(), []byte(font), []byte(font+",Arial,sans-serif")), err
}

// addShares draws a dot with its range for each, and a line where both sides make the same.
func addShares(p *plot.Plot, middles plotter.XYs, errs plotter.XErrors) error {
	points := struct {
		plotter.XYs
		plotter.XErrors
	}{middles, errs}
	ranges, err := plotter.NewXErrorBars(points)
	if err != nil {
		return err
	}
	ranges.Color, ranges.Width = mark, vg.Points(1)
	dots, err := plotter.NewScatter(middles)
	if err != nil {
		return err
	}
	dots.Color, dots.Shape, dots.Radius = mark, draw.CircleGlyph{}, vg.Points(3)
	even, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(middles)) - 0.5}})
	if err != nil {
		return err
	}
	even.Color = ink
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = faint, nil
	p.Add(grid, even, ranges, dots)
	return nil
}

// ticks are round ratios.
func ticks(least, most float64) (all []plot.Tick) {
	for _, v := range []float64{0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000} {
		if v >= least && v <= most {
			all = append(all, plot.Tick{Value: v, Label: fmt.Sprintf("%gx", v)})
		}
	}
	return all
}
