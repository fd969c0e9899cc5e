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

figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), height_ratios=[3, 1], layout="constrained")
above.plot(weekly.index, weekly, color="0.7", linewidth=0.8, label="weekly")
above.plot(monthly.index, monthly.rolling(12, center=True).mean(), color="C3", label="12-month mean")
above.set_ylabel("CO2, ppmv")
above.set_title("Mauna Loa, weekly means")
above.legend()
below.bar(season.index, season, color="C0")
below.set_xticks(range(1, 13))
below.set_xlabel("month")
below.set_ylabel("season, ppmv")
figure.savefig(chart, dpi=100)
print(f"\nwrote {chart}")
