// The structs of params.h from Python, for the bindings of every backend.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "params.h"

namespace xlstm_fused {

namespace py = pybind11;

// Reads the fields of a struct of params.h, in its order, from a tuple of integers: sizes, flags, and addresses, 0 for
// nullptr. One tuple costs a call far less than a named argument for each.
class Fields {
 public:
  Fields(const char* name, const py::tuple& values, size_t count) : values_(values) {
    if (values.size() == count) return;
    throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(count) + " fields, got " +
                                std::to_string(values.size()));
  }

  // A size, a stride, or a flag.
  int64_t number() { return values_[next_++].cast<int64_t>(); }

  template <class T = void>
  T* pointer() {
    return reinterpret_cast<T*>(values_[next_++].cast<uintptr_t>());
  }

  Problem problem() {
    Rows rows{number(), number(), number(), number(), number(),
              pointer<int64_t>(), pointer<int64_t>(), pointer<int64_t>()};
    return {rows, number(), number(), number(), number() != 0, number() != 0, pointer(), pointer(), pointer(),
            pointer<uint8_t>(), pointer(), pointer(), pointer()};
  }

 private:
  const py::tuple& values_;
  size_t next_ = 0;
};

inline constexpr size_t kProblemFields = 20, kForwardFields = 6, kInputFields = 4,
                        kBackwardFields = 13;

inline ForwardParams forward_params(const py::tuple& problem, const py::tuple& arrays) {
  Fields rest("arrays", arrays, kForwardFields);
  return {Fields("problem", problem, kProblemFields).problem(), rest.pointer(), rest.pointer(),
          rest.pointer(), rest.pointer(), rest.pointer(), rest.pointer()};
}

inline Input input_of(const py::tuple& input) {
  Fields fields("input", input, kInputFields);
  return {fields.number(), fields.pointer(), fields.pointer(), fields.pointer()};
}

inline BackwardParams backward_params(const py::tuple& problem, const py::tuple& arrays) {
  Fields rest("arrays", arrays, kBackwardFields);
  return {Fields("problem", problem, kProblemFields).problem(), rest.pointer(), rest.pointer(),
          rest.pointer(), rest.pointer(), rest.pointer(), rest.pointer(), rest.pointer(),
          rest.pointer(), rest.pointer(), rest.pointer(), rest.pointer(), rest.pointer(),
          rest.pointer()};
}

}  // namespace xlstm_fused
