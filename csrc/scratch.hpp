// Memory that a calling thread keeps from one call of an op to the next, so that no call pays for fresh pages.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#ifndef OSSIA_ISA
#error "for ops, which are compiled once for each ISA: a shared function would hold the code of any of them"
#endif

namespace ossia::OSSIA_ISA {

// Declare as `static thread_local Scratch name;` in the op. Grows, never shrinks; the content is not kept between calls.
class Scratch {
 public:
  // At least `count` objects of type T, on a cache line of their own, not initialised.
  template <typename T>
  T* take(std::size_t count) {
    const std::size_t needed = count * sizeof(T);
    if (needed > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(::operator new(needed, kLine));
      size_ = needed;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kLine); }
  };
  std::unique_ptr<void, Free> memory_;
  std::size_t size_ = 0;
};

}  // namespace ossia::OSSIA_ISA
