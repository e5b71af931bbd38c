// The door of the machine's limits.
#include "../limits.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <string>
#include <utility>

#include "door.hpp"

namespace nb = nanobind;

namespace {

std::pair<double, double> measure_limits(int threads, std::size_t num_bytes) {
  if (threads < 1) ossia::door::refuse("threads is " + std::to_string(threads) + ": give at least 1");
  nb::gil_scoped_release release;
  const ossia::Limits limits = ossia::measure_limits(threads, num_bytes);
  return {limits.read_bytes_per_second, limits.int8_macs_per_second};
}

}  // namespace

void bind_limits(nb::module_& m) {
  m.def("measure_limits", &measure_limits, nb::arg("threads"), nb::arg("num_bytes"),
        "Bytes a second read from a buffer of num_bytes, and 8-bit multiply-adds a second; takes about a second.");
}
