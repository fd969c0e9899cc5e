"""Carbon dioxide over Mauna Loa: a table per decade, and a chart. Usage: co2.py CSV [CHART]"""

import sys

import matplotlib.pyplot as plt
import pandas as pd

source = sys.argv[1]
chart = sys.argv[2] if len(sys.argv) > 2 else "chart.png"

weekly = pd.read_csv(source)
weekly["date"] = pd.to_datetime(weekly["date"].astype(str), format="%Y%m%d")
weekly = weekly.set_index("date")["co2"]
monthly = weekly.resample("MS").mean().interpolate()

decade = (monthly.index.year // 10 * 10).astype(str) + "s"
table = monthly.groupby(decade).agg(["mean", "min", "max"]).round(2)
table["growth"] = table["mean"].diff().round(2)
table.columns = ["mean ppmv", "lowest", "highest", "change"]
table.index.name = "decade"
print(f"{len(weekly)} weeks, {int(weekly.isna().sum())} of them without a measurement\n")
print(table.to_string(na_rep="-"))

by_month = monthly - monthly.rolling(12, center=True).mean()
season = by_month.groupby(by_month.index.month).mean()
print(f"\nhighest in month {season.idxmax()}, lowest in month {season.idxmin()}")
print(f"difference {season.max() - season.min():.2f} ppmv")

year = monthly.index.year + (monthly.index.month - 0.5) / 12
figure, axes = plt.subplots(figsize=(7, 4))
axes.plot(year, monthly, color="0.7", label="monthly mean")
axes.plot(year, monthly.rolling(12, center=True).mean(), color="C3", label="12-month mean")
axes.set(title="Mauna Loa", ylabel="CO2, ppmv")
axes.legend()
figure.savefig(chart)
print(f"\nwrote {chart}")
