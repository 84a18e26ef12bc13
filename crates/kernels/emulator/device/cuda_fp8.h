// Stands for the toolkit's header of this name: emulate.h, included before everything, has what it declares.
#pragma once
